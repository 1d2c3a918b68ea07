"""Configurations of the three methods: what of a model is adapted, and by which structure."""

import math
import os
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from surm_kernels import _checks, siva
from surm_kernels.nn._strategy import STRATEGIES
from surm_kernels.peft._activated import Activated
from surm_kernels.peft._files import is_pickle_alone, shapes_in
from surm_kernels.peft._register import peft_type
from surm_kernels.structures import (
    BlockCirculant,
    CirculantDiagonal,
    CirculantProduct,
    Hankel,
    Hydra,
    Kronecker,
    Monarch,
    Structure,
    SymmetricToeplitz,
    ToeplitzLike,
    ToeplitzProduct,
)

#: Of what a configuration means and of the tensors of an adapter; raised when either changes.
FORMAT_VERSION = 1

#: Rank of "ldr" where none is given: SURM's for Llama 2.
DEFAULT_RANK = 4

_STRUCTURES: dict[str, type[Structure]] = {
    "circulant": CirculantProduct,
    "toeplitz": ToeplitzProduct,
    "kronecker": Kronecker,
    "ldr": ToeplitzLike,
    "block_circulant": BlockCirculant,
    "symmetric_toeplitz": SymmetricToeplitz,
    "hankel": Hankel,
    "circulant_diagonal": CirculantDiagonal,
    "monarch": Monarch,
}
_WITH_BLOCKS = ("circulant", "block_circulant", "hankel")
_WITH_RANK = ("ldr",)
_README = """
## Loading this adapter

Its method, {name}, comes from the package `surm-kernels`. PEFT knows it after this line, and raises
`KeyError: '{name}'` without it:

```python
import surm_kernels.peft
```
"""


@dataclass(kw_only=True)
class UpdateConfig(PeftConfig):
    """What the methods have in common: which layers are adapted, and how much.

    Attributes:
        target_modules: names of layers or ends of their paths, a regular expression, or "all-linear"; by default the
            query and value projections of architectures that are known.
        exclude_modules: likewise, what is left out.
        modules_to_save: modules that are trained whole and saved, such as a new head.
        layers_to_transform: indices of the blocks whose layers are adapted, by default all.
        layers_pattern: name of the list of blocks, for models where it is not plain.
        trainable_token_indices: see PEFT.
        bias: "none", "all", or the method's name with "_only": which biases of the model are trained.
        alpha: factor of the update.
        alpha_pattern: other factors for some layers, by the ends of their paths, which may be regular expressions.
        init_weights: whether the update starts at 0; if not, every factor of it starts from N(0, 0.02^2).
        strategy: "auto", "direct" or "merged", see `surm_kernels.nn.AdaptedLinear`.
        format_version: of the configuration; one that is newer than the package is refused.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    trainable_token_indices: Any = None
    bias: str = "none"
    alpha: float = 1.0
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    init_weights: bool = True
    strategy: str = "auto"
    format_version: int = FORMAT_VERSION

    #: Name of the method, that of its type in PEFT.
    name = ""
    #: Of the structure's initialisations, that with W = 0.
    start = "paper"
    #: Whether it was read from a file and the tensors beside it were not loaded yet.
    awaits_tensors = False

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Refuses options that it does not know and that are in use: PEFT leaves out those of a newer version."""
        known = {each.name for each in fields(cls)}
        for name, value in options.items():
            if name not in known and value:
                raise TypeError(f"{cls.__name__} has no option {name}, got {value!r}; a newer surm-kernels may have it")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.awaits_tensors = self.peft_version is not None  # which PEFT enters into files alone
        super().__post_init__()
        self.peft_type = peft_type(self.name)
        #: By name, the shapes of the tensors in the folder that it was read from.
        self.saved_shapes: dict[str, tuple[int, ...]] = {}
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            _require_names(name, getattr(self, name), or_string=True)
        _require_names("modules_to_save", self.modules_to_save, or_string=False)
        self.target_modules = _set_of(self.target_modules)
        self.exclude_modules = _set_of(self.exclude_modules)
        _require_indices("layers_to_transform", self.layers_to_transform)
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"layers_to_transform must be None where target_modules is a regular expression, "
                f"got {self.layers_to_transform}"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern must be None without layers_to_transform, got {self.layers_pattern!r}")
        _checks.require_choice("bias", self.bias, ("none", "all", f"{self.name.lower()}_only"))
        _checks.require_choice("strategy", self.strategy, STRATEGIES)
        for name, pattern in self.patterns.items():
            _require_pattern(name, pattern)
        for value in (self.alpha, *self.alpha_pattern.values()):
            _require_number("alpha", value)
        _require_bool("init_weights", self.init_weights)
        _checks.require_size("format_version", self.format_version)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"format_version must be at most {FORMAT_VERSION}, got {self.format_version}: the adapter was saved by "
                f"a newer surm-kernels"
            )

    @property
    def patterns(self) -> dict[str, dict[str, Any]]:
        """The overrides for some layers, by the names of their attributes."""
        return {
            name: value for name, value in vars(self).items() if name.endswith("_pattern") and name != "layers_pattern"
        }

    def value(self, name: str, path: str) -> Any:
        """That of an attribute for the layer with a path, which a pattern may override."""
        pattern = getattr(self, f"{name}_pattern")
        return (
            pattern.get(get_pattern_key(pattern.keys(), path), getattr(self, name)) if pattern else getattr(self, name)
        )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes adapter_config.json, and a line into README.md on what to import; warns of tensors in a pickle."""
        super().save_pretrained(save_directory, **kwargs)
        if is_pickle_alone(save_directory):
            warnings.warn(
                f"{save_directory} has the adapter as a pickle, which is refused when it is loaded: save it with "
                f"safe_serialization=True",
                stacklevel=2,
            )
        readme = Path(save_directory) / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        if "import surm_kernels.peft" not in text:
            readme.write_text(text + _README.format(name=self.name), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As PEFT does; a folder whose tensors are damaged, or in a pickle alone, is refused."""
        shapes = shapes_in(os.path.join(pretrained_model_name_or_path, subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        config.awaits_tensors, config.saved_shapes = True, shapes
        return config


@dataclass(kw_only=True)
class SurmConfig(UpdateConfig):
    """SURM (arXiv 2406.17740): one structured matrix of full rank for every adapted weight.

    Attributes:
        structure: of the update of an m x n weight, by numbers trained: "circulant" C(r1 * r2), 2 max(m, n);
            "toeplitz" T(t2) T(t1), 2 max(m, n); "kronecker" A (x) B; "ldr" of displacement rank r, 2 r max(m, n);
            "block_circulant" with a vector a block, m n / b, as PEFT's C3A; "symmetric_toeplitz", max(m, n); "hankel",
            m + n - 1; "circulant_diagonal" C diag(d) C, 3 max(m, n); "monarch", two block-diagonal factors.
        init: the structure's initialisation, "paper", or "repo" where SURM's code differs from its paper (circulant
            and kronecker). All start with an update of 0.
        block_size: of the square blocks of "circulant", "block_circulant" and "hankel". By default one block, and the
            greatest common divisor of m and n for "block_circulant".
        block_size_pattern: other sizes for some layers.
        rank: of "ldr", by default 4.
        rank_pattern: other ranks for some layers.
        form: "lora" for x W0^T + alpha x W^T; "adapter" for an adapter after the layer (Houlsby et al., 2019),
            Y = X + alpha GELU(W X) + b on its outputs X. By default there are two in a block, on the
            projections whose outputs are added to the residual, attention's and the feed-forward layer's;
            target_modules names other ones. W is square, of the size of X. Several active adapters add what each makes
            of the same X. Adapters of this form cannot be merged, and a layer takes adapters of one form.
        adapter_bias: whether the adapter form has its b, which starts from 0.
    """

    structure: str = "circulant"
    init: str = "paper"
    block_size: int | None = None
    block_size_pattern: dict[str, int] = field(default_factory=dict)
    rank: int | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    form: str = "lora"
    adapter_bias: bool = True

    name = "SURM"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_choice("structure", self.structure, _STRUCTURES)
        _checks.require_choice("init", self.init, ("paper", "repo"))
        if self.init not in _initialisations(self.structure):
            raise ValueError(f"init must be 'paper' for structure {self.structure!r}, got {self.init!r}")
        _checks.require_choice("form", self.form, ("lora", "adapter"))
        _require_bool("adapter_bias", self.adapter_bias)
        _require_option("block_size", self.block_size, self.block_size_pattern, self.structure, _WITH_BLOCKS)
        _require_option("rank", self.rank, self.rank_pattern, self.structure, _WITH_RANK)
        if self.form == "adapter":
            self._require_adapter_options()

    @property
    def start(self) -> str:  # type: ignore[override]
        return self.init

    def structure_of(self, path: str, in_features: int, out_features: int) -> Structure:
        """The structure of the update of a layer."""
        if self.form == "adapter":
            in_features = out_features
        options: dict[str, Any] = {}
        if self.structure in _WITH_BLOCKS:
            options["block_size"] = self.value("block_size", path)
            if options["block_size"] is None and self.structure == "block_circulant":
                options["block_size"] = math.gcd(in_features, out_features)
        if self.structure in _WITH_RANK:
            rank = self.value("rank", path)
            options["rank"] = DEFAULT_RANK if rank is None else rank
        make = Monarch.fitting if self.structure == "monarch" else _STRUCTURES[self.structure]
        structure = make(in_features, out_features, **options)
        return Activated(structure, self.adapter_bias) if self.form == "adapter" else structure

    def _require_adapter_options(self) -> None:
        """Refuses what has no meaning for an adapter after a layer, which needs a residual and has no matrix."""
        if self.target_modules == "all-linear":
            raise ValueError(
                'target_modules must name output projections where form is "adapter", got "all-linear": such adapters '
                "stand before a residual"
            )
        if self.strategy == "merged":
            raise ValueError('strategy must be "auto" or "direct" where form is "adapter", got "merged"')


@dataclass(kw_only=True)
class HydraConfig(UpdateConfig):
    """HyDRA: a grid of small structured blocks, all drawn from one pool of numbers for every adapted weight.

    Attributes:
        structure: of the blocks, see `surm_kernels.structures.Hydra`, likewise the following.
        splits: of rows and of columns: the grid has splits x splits blocks.
        pool_size: how many numbers, by default as many as the blocks have places.
        pool_size_pattern: other sizes for some layers.
        fixed_fraction: share of the pool that is not trained.
        rank: of the blocks "low_rank" and "toeplitz_like".
        rank_pattern: other ranks for some layers.
        seed: of the places' numbers in the pool, and of the share that is not trained.
    """

    structure: str = "toeplitz"
    splits: int = 4
    pool_size: int | None = None
    pool_size_pattern: dict[str, int] = field(default_factory=dict)
    fixed_fraction: float = 0.0
    rank: int | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    name = "HYDRA"

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.splits if isinstance(self.splits, int) and self.splits > 0 else 1
        Hydra(64 * size, 64 * size, self.splits, self.structure, None, self.fixed_fraction, self.rank, self.seed)
        for name in ("pool_size", "rank"):
            for value in (getattr(self, name), *getattr(self, f"{name}_pattern").values()):
                if value is not None:
                    _checks.require_size(name, value)

    def structure_of(self, path: str, in_features: int, out_features: int) -> Structure:
        """The structure of the update of a layer."""
        pool_size, rank = self.value("pool_size", path), self.value("rank", path)
        return Hydra(
            in_features, out_features, self.splits, self.structure, pool_size, self.fixed_fraction, rank, self.seed
        )


@dataclass(kw_only=True)
class SivaConfig(UpdateConfig):
    """SiVA: k values on pairs of the weight's own singular vectors, by default those of the smallest singular values.

    Attributes:
        perc: share of the spectrum that is left alone, which says how many values are trained; not read where k is
            given. See `surm_kernels.siva.count`.
        perc_pattern: other shares for some layers.
        rule: "variance" or "sum" of the singular values make the spectrum.
        k: how many values.
        basis: "bottom", "top" or "random" singular vectors.
        save_bases: whether the singular vectors are saved, about as much as the weight itself. Otherwise whoever loads
            the adapter decomposes the weights again, and another weight is refused by a fingerprint.
        precision: "float64" or "float32", of the decomposition.
        seed: of basis "random".
    """

    perc: float = 0.95
    perc_pattern: dict[str, float] = field(default_factory=dict)
    rule: str = "variance"
    k: int | None = None
    basis: str = "bottom"
    save_bases: bool = False
    precision: str = "float64"
    seed: int = 0

    name = "SIVA"

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (self.perc, *self.perc_pattern.values()):
            _require_number("perc", value)
            if not 0 < value <= 1:
                raise ValueError(f"perc must be above 0 and at most 1, got {value}")
        _checks.require_choice("rule", self.rule, siva.RULES)
        _checks.require_choice("basis", self.basis, siva.BASES)
        _checks.require_choice("precision", self.precision, siva.PRECISIONS)
        _checks.require_int("seed", self.seed)
        _require_bool("save_bases", self.save_bases)
        if self.k is not None:
            _checks.require_size("k", self.k)


def _set_of(names: Any) -> Any:
    """Lists of names as sets, as PEFT has them."""
    return set(names) if isinstance(names, (list, tuple)) else names


def _require_names(name: str, value: Any, or_string: bool) -> None:
    """None, or a collection of strings, or where that is allowed one string."""
    if value is None or (or_string and isinstance(value, str)):
        return
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name} must be {'a string or ' if or_string else ''}a list of strings, got {value!r}")


def _require_indices(name: str, value: Any) -> None:
    """None, an int, or ints."""
    for each in value if isinstance(value, (list, tuple, set)) else [value]:
        if value is not None and (isinstance(each, bool) or not isinstance(each, int)):
            raise TypeError(f"{name} must be an int or a list of ints, got {value!r}")


def _require_pattern(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a dict from names of layers to values, got {value!r}")


def _require_number(name: str, value: Any) -> None:
    """A finite number."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a real number, got bool")
    _checks.require_finite(name, value)


def _require_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _initialisations(structure: str) -> tuple[str, ...]:
    return _STRUCTURES[structure].initialisations


def _require_option(name: str, value: Any, pattern: dict[str, Any], structure: str, allowed: tuple[str, ...]) -> None:
    """A size, for the structures that have such an option."""
    for given in (value, *pattern.values()):
        if given is None:
            continue
        if structure not in allowed:
            raise ValueError(f"{name} must be None for structure {structure!r}, got {given!r}")
        _checks.require_size(name, given)
