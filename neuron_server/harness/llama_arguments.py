"""The arguments of llama-server that decide how much memory it takes, and where (pure functions)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_MEMORY_OPTIONS = frozenset(
    {
        *("-ngl", "--gpu-layers", "--n-gpu-layers", "-ncmoe", "--n-cpu-moe"),
        *("-ot", "--override-tensor", "-fa", "--flash-attn"),
        *("-ctk", "--cache-type-k", "-ctv", "--cache-type-v"),
        *("-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu", "-dev", "--device"),
        *("-b", "--batch-size", "-ub", "--ubatch-size"),
        *("-c", "--ctx-size", "-np", "--parallel"),
    }
)
_MEMORY_SWITCHES = frozenset(
    {
        *("-cmoe", "--cpu-moe", "-nkvo", "--no-kv-offload"),
        *("-kvu", "--kv-unified", "--swa-full"),
    }
)
_EXTRA_FILES = ("--mmproj", "-mm", "-md", "--model-draft")


def memory_arguments(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments that llama-fit-params must get as well; it rejects those of the server."""
    position = 0
    while position < len(args):
        argument = args[position]
        position += 1
        if argument in _MEMORY_SWITCHES:
            yield argument
        elif argument in _MEMORY_OPTIONS:
            yield argument
            if position < len(args) and not _is_flag(args[position]):
                yield args[position]
                position += 1


def extra_files(args: Sequence[str]) -> list[str]:
    """Return the paths of files that are loaded in addition to the model: its projector and its draft model."""
    found = (option(args, name) for name in _EXTRA_FILES)
    return [path for path in found if path is not None]


def option(args: Sequence[str], *names: str) -> str | None:
    """Return the value of an option, the last one if it is repeated; None if it is not among the arguments."""
    values = [args[i + 1] for i, argument in enumerate(args[:-1]) if argument in names]
    return values[-1] if values else None


def cache_types(args: Sequence[str]) -> tuple[str, str]:
    """Return the types of the keys and values in the KV cache."""
    return (
        option(args, "-ctk", "--cache-type-k") or "f16",
        option(args, "-ctv", "--cache-type-v") or "f16",
    )


def offloaded_share(args: Sequence[str], layers: int) -> float:
    """Return the share of the layers that stay in the host's RAM, because `-ngl` is less than their number."""
    on_gpu = option(args, "-ngl", "--gpu-layers", "--n-gpu-layers")
    if on_gpu is None or not on_gpu.isdecimal():
        return 0.0
    return max(0.0, 1 - int(on_gpu) / max(1, layers))


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not argument[1:2].isdecimal()
