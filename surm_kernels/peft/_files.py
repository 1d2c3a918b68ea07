"""Files of adapters before their tensors are read: whole, of safetensors, and of what names and shapes."""

import os

from safetensors import SafetensorError, safe_open

_TENSORS, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"


def is_pickle_alone(folder: str) -> bool:
    """Whether a folder on this machine has the tensors of an adapter in a pickle and not otherwise."""
    return os.path.isfile(os.path.join(folder, _PICKLE)) and not os.path.isfile(os.path.join(folder, _TENSORS))


def shapes_in(folder: str) -> dict[str, tuple[int, ...]]:
    """By name, the shapes of the tensors that a folder on this machine has; none of a folder without such a file.

    Raises:
        ValueError: the file is damaged, or the only one is a pickle.
    """
    path = os.path.join(folder, _TENSORS)
    if is_pickle_alone(folder):
        raise ValueError(
            f"the adapter must be in {_TENSORS}, got {_PICKLE} alone in {folder}: pickled files are not read, since "
            f"they may hold more than tensors"
        )
    if not os.path.isfile(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error
