"""What the build decides: compilers, flags, instruction sets, CUDA architectures, and what happens without them."""

import subprocess
import sys
from pathlib import Path

import pytest

from build_support import extension, ninja, toolchain
from build_support.toolchain import BuildError, CudaToolkit, Missing
from surm_kernels._namespace import CUDA_NAMESPACE, NAMESPACE

NVCC_12_4 = ["sm_50", "sm_52", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90"]
NVCC_13_0 = ["sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120"]
CPUINFO_WITH_AVX2 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma f16c bmi2\n"


def target(machine: str = "x86_64", cuda: CudaToolkit | None = None) -> extension.Target:
    return extension.Target(("c++",), Path("/torch"), toolchain.instruction_sets(machine), cuda)


def toolkit() -> CudaToolkit:
    return CudaToolkit("/cuda/bin/nvcc", Path("/cuda/lib64"), ("8.0", "9.0+PTX"))


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_x86_compiles_three_instruction_sets_in_ascending_order(machine):
    assert list(toolchain.instruction_sets(machine)) == ["baseline", "avx2", "avx512"]


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ppc64le", "riscv64"])
def test_other_machines_compile_the_baseline_only(machine):
    assert toolchain.instruction_sets(machine) == {"baseline": ()}


@pytest.mark.parametrize(
    ("name", "machine", "cpuinfo", "runs"),
    [
        ("baseline", "x86_64", CPUINFO_WITH_AVX2, True),
        ("avx2", "x86_64", CPUINFO_WITH_AVX2, True),
        ("avx512", "x86_64", CPUINFO_WITH_AVX2, False),
        ("avx2", "x86_64", "", False),
        ("avx2", "x86_64", CPUINFO_WITH_AVX2.replace(" bmi2", ""), False),
        ("unknown", "x86_64", CPUINFO_WITH_AVX2, False),
        ("baseline", "aarch64", "Features\t: fp asimd\n", False),
    ],
)
def test_which_instruction_sets_are_tested_apart(name, machine, cpuinfo, runs):
    assert toolchain.runs_here(name, machine, cpuinfo) is runs


@pytest.mark.parametrize(
    ("asked", "known", "kept"),
    [
        (toolchain.DEFAULT_CUDA_ARCHITECTURES, NVCC_13_0, ("8.0", "9.0", "10.0+PTX")),
        (toolchain.DEFAULT_CUDA_ARCHITECTURES, NVCC_12_4, ("8.0", "9.0+PTX")),
        ("5.2 6.0 8.0", NVCC_13_0, ("8.0",)),
        ("7.5,8.6+PTX", NVCC_12_4, ("7.5", "8.6+PTX")),
        ("8.0+PTX;9.0", NVCC_12_4, ("8.0+PTX", "9.0")),
        ("9.0a;", NVCC_13_0, ("9.0a",)),
        ("8.0+PTX 12.0+PTX", NVCC_12_4, ("8.0+PTX",)),
    ],
)
def test_architectures_are_those_that_nvcc_knows(asked, known, kept):
    assert toolchain.cuda_architectures(asked, known) == kept


@pytest.mark.parametrize("asked", ["Hopper", "sm_90", "9", "8.0;ninety", "9.0+ptx"])
def test_malformed_architecture_is_named(asked):
    with pytest.raises(BuildError, match="TORCH_CUDA_ARCH_LIST.*wanted a list like"):
        toolchain.cuda_architectures(asked, NVCC_13_0)


def test_no_known_architecture_is_an_error():
    with pytest.raises(BuildError, match="knows none of '5.2'"):
        toolchain.cuda_architectures("5.2", NVCC_13_0)


def test_architecture_flags_add_ptx_where_asked():
    assert toolchain.architecture_flags(["8.0", "10.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_is_found_under_the_toolkit_folder(tmp_path, variable):
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.touch()
    assert toolchain.find_nvcc({variable: str(tmp_path), "PATH": ""}) == str(program)


def test_nvcc_is_found_on_the_path(tmp_path):
    program = tmp_path / "nvcc"
    program.touch(mode=0o755)
    assert toolchain.find_nvcc({"CUDA_HOME": "/nowhere", "PATH": str(tmp_path)}) == str(program)


def test_missing_nvcc_is_said():
    with pytest.raises(Missing, match="nvcc was not found"):
        toolchain.find_nvcc({"PATH": ""})


def test_cuda_libraries_are_found_from_the_dry_run(tmp_path):
    libraries = tmp_path / "lib64"
    libraries.mkdir()
    dryrun = f"#$ _HERE_={tmp_path}/bin\n#$ TOP={tmp_path}/bin/..\n"
    (tmp_path / "bin").mkdir()
    with pytest.raises(Missing, match="libcudart_static"):
        toolchain.cuda_library_folder(dryrun)
    (libraries / "libcudart_static.a").touch()
    assert toolchain.cuda_library_folder(dryrun) == libraries.resolve()


def test_cuda_libraries_may_lie_in_the_targets_folder(tmp_path):
    (tmp_path / "libcudart_static.a").touch()
    dryrun = f'#$ TOP=/nowhere/bin/..\n#$ LIBRARIES=  "-L{tmp_path}/stubs" "-L{tmp_path}"\n'
    assert toolchain.cuda_library_folder(dryrun) == tmp_path.resolve()


@pytest.fixture
def without_cuda(monkeypatch):
    def missing():
        raise Missing("nvcc was not found")

    monkeypatch.setattr(extension, "find_cuda", missing)
    monkeypatch.setattr(extension, "sources", lambda pattern: ["csrc/cuda/grid.cu"])


def test_missing_nvcc_means_a_cpu_library(without_cuda, monkeypatch):
    monkeypatch.delenv("SURM_KERNELS_CUDA", raising=False)
    assert extension.cuda_or_reason() == (None, "nvcc was not found")


def test_missing_nvcc_is_an_error_where_cuda_was_asked_for(without_cuda, monkeypatch):
    monkeypatch.setenv("SURM_KERNELS_CUDA", "1")
    with pytest.raises(BuildError, match="SURM_KERNELS_CUDA=1, but nvcc was not found"):
        extension.cuda_or_reason()


def test_cuda_can_be_ruled_out(monkeypatch):
    monkeypatch.setenv("SURM_KERNELS_CUDA", "0")
    assert extension.cuda_or_reason() == (None, "SURM_KERNELS_CUDA=0")


def test_no_compiler_means_no_extension(monkeypatch):
    monkeypatch.delenv("SURM_KERNELS_EXTENSION", raising=False)
    monkeypatch.setenv("CXX", "/nowhere/c++ -m64")
    assert "tried /nowhere/c++ -m64" in extension.reason_not_to_build()


def test_no_compiler_is_an_error_where_the_extension_was_asked_for(monkeypatch):
    monkeypatch.setenv("SURM_KERNELS_EXTENSION", "1")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(BuildError, match="SURM_KERNELS_EXTENSION=1, but no working"):
        extension.reason_not_to_build()


def test_extension_can_be_ruled_out(monkeypatch):
    monkeypatch.setenv("SURM_KERNELS_EXTENSION", "0")
    assert extension.reason_not_to_build() == "SURM_KERNELS_EXTENSION=0"


def test_only_linux_builds():
    with pytest.raises(Missing, match="Linux only"):
        toolchain.find_compiler(platform="win32")


@pytest.mark.parametrize(("value", "meaning"), [("", "auto"), ("auto", "auto"), ("0", "0"), ("1", "1")])
def test_switch_values(value, meaning):
    assert toolchain.switch("SWITCH", {"SWITCH": value}) == meaning


def test_switch_names_a_bad_value():
    with pytest.raises(BuildError, match="SWITCH='yes': wanted 0, 1 or auto"):
        toolchain.switch("SWITCH", {"SWITCH": "yes"})


def test_kernels_are_compiled_once_per_instruction_set():
    steps = extension.kernel_steps(target())
    per_source = {}
    for step in steps:
        per_source.setdefault(step.inputs[0], []).append(step)
    assert "csrc/cpu/grid_kernels.cpp" in per_source
    for variants in per_source.values():
        defines = [flag for step in variants for flag in step.flags if flag.startswith("-DSURM_INSTRUCTION_SET=")]
        assert [define.split("=")[1] for define in defines] == ["baseline", "avx2", "avx512"]
        assert not any(flag.startswith("-mavx") for flag in variants[0].flags)
        assert "-mavx512f" in variants[2].flags
    assert len({step.output for step in steps}) == len(steps)


def test_objects_are_linked_in_ascending_order_of_instruction_set():
    link = extension.all_steps(target())[-1]
    order = [name.split(".")[-2] for name in link.inputs]
    assert "avx512" in order
    assert order == sorted(order, key=["cpp", "baseline", "avx2", "avx512"].index)


def test_only_the_glue_sees_torch():
    for step in [*extension.plain_steps(target()), *extension.kernel_steps(target())]:
        is_glue = step.inputs[0].count("/") == 1
        assert ("/torch/include" in step.flags) is is_glue, step.inputs


def test_glue_knows_what_was_compiled():
    flags = next(step for step in extension.plain_steps(target()) if step.inputs == ("csrc/library.cpp",)).flags
    assert {"-DSURM_HAS_BASELINE=1", "-DSURM_HAS_AVX2=1", "-DSURM_HAS_AVX512=1"} <= set(flags)
    assert "-DSURM_WITH_CUDA=1" not in flags
    flags = extension.plain_steps(target("aarch64", toolkit()))[0].flags
    assert "-DSURM_WITH_CUDA=1" in flags and "-DSURM_HAS_AVX2=1" not in flags


def test_glue_alone_is_told_the_namespaces_of_python():
    for step in [*extension.plain_steps(target()), *extension.kernel_steps(target())]:
        told = {flag for flag in step.flags if "NAMESPACE" in flag}
        is_glue = step.inputs[0].count("/") == 1
        wanted = {f"-DSURM_NAMESPACE={NAMESPACE}", f"-DSURM_CUDA_NAMESPACE={CUDA_NAMESPACE}"} if is_glue else set()
        assert told == wanted, step.inputs


def test_without_cuda_nothing_of_it_is_built_or_linked():
    assert extension.cuda_steps(target()) == []
    assert "-lcudart_static" not in extension.link_step(target(), ()).flags


def test_cuda_kernels_are_compiled_for_every_architecture_with_their_registers_reported():
    steps = extension.cuda_steps(target(cuda=toolkit()))
    assert "csrc/cuda/grid_dense.cu" in [step.inputs[0] for step in steps]
    for step in steps:
        assert step.rule == "compile_cuda"
        assert {"-Xptxas=-v", "-gencode=arch=compute_80,code=sm_80"} <= set(step.flags)


def test_cuda_objects_are_linked_with_the_static_runtime():
    flags = extension.link_step(target(cuda=toolkit()), ()).flags
    assert {"-L/cuda/lib64", "-lcudart_static"} <= set(flags)


def test_ninja_file_quotes_what_the_shell_and_ninja_would_read():
    step = ninja.Step("compile", "out dir/a.o", ("a:b.cpp",), ("c++",), ("-I/my folder", "-DX=$Y"))
    text = ninja.ninja_text([step], "out dir")
    assert "build out$ dir/a.o: compile a$:b.cpp" in text
    assert "flags = '-I/my folder' '-DX=$$Y'" in text


def fake_nvcc(folder: Path, status: int) -> tuple[str, ...]:
    """Says what nvcc -Xptxas=-v says of a kernel, and a warning; writes the dependencies and the object."""
    script = folder / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        'echo "ptxas info    : Used 8 registers" >&2\n'
        'echo "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" >&2\n'
        'echo "warning: about the source" >&2\n'
        'while [ $# -gt 0 ]; do case $1 in -MF) echo "object:" > "$2";; -o) touch "$2";; esac; shift; done\n'
        f"exit {status}\n"
    )
    script.chmod(0o755)
    return (str(script),)


def cuda_step(folder: Path, status: int) -> ninja.Step:
    source = folder / "kernel.cu"
    source.touch()
    return ninja.Step("compile_cuda", str(folder / "a b.o"), (str(source),), fake_nvcc(folder, status), ())


def test_what_ptxas_reports_is_kept_beside_the_object_and_warnings_are_shown(tmp_path, capfd):
    ninja.run_ninja([cuda_step(tmp_path, 0)], tmp_path)
    log, shown = (tmp_path / "a b.o.log").read_text(), capfd.readouterr().out
    assert "Used 8 registers" in log and "0 bytes spill stores" in log and "about the source" in log
    assert "about the source" in shown and "registers" not in shown and "spill" not in shown


def test_a_failing_cuda_compiler_fails_the_build_and_says_why(tmp_path, capfd):
    with pytest.raises(BuildError):
        ninja.run_ninja([cuda_step(tmp_path, 2)], tmp_path)
    assert "about the source" in capfd.readouterr().out


def test_replace_leaves_an_equal_file_alone_and_swaps_a_different_one(tmp_path):
    made, output = tmp_path / "made.so", tmp_path / "package" / "library.so"
    made.write_bytes(b"one")
    extension.replace(made, output)
    first = output.stat()
    extension.replace(made, output)
    assert output.stat().st_ino == first.st_ino
    made.write_bytes(b"two")
    extension.replace(made, output)
    assert output.read_bytes() == b"two" and output.stat().st_ino != first.st_ino
    assert [path.name for path in output.parent.iterdir()] == ["library.so"]


def test_command_line_answers_which_instruction_sets_run():
    command = [sys.executable, "-m", "build_support", "--runs", "unknown"]
    assert subprocess.run(command, cwd=ninja.ROOT, check=False).returncode == 1
