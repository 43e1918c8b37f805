"""The native kernels: compiled once on this machine, called through ctypes.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kalm_cache.errors import UsageError
from kalm_cache.model.kernels.activations import Accumulated, Activation, Product, Quantized
from kalm_cache.model.kernels.compile import SOURCE, compiled_library
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import PrefixKV

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_KINDS = ("f32", "bf16", "i8", "i8_f32")
PREFIX_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "i8"}
SYMBOLS = (  # what native.cpp exports
    "quantize",
    "multiply_int8",
    "int8_instructions",
    *(f"{name}_{kind}" for name in ("norm", "add_norm", "gated_gelu", "split_heads") for kind in _KINDS),
    *(f"softmax_{kind}" for kind in SUFFIXES.values()),
    *(f"load_kv_{source}_{stream}" for source in PREFIX_SUFFIXES.values() for stream in SUFFIXES.values()),
)
SCORE_BYTES = 4 << 20  # attention scores of a few sequences at a time: they stay in the cache


def native_library() -> ctypes.CDLL | None:
    """The compiled kernels, `native.cpp`; see `compiled_library`."""
    return compiled_library(SOURCE, SYMBOLS)


class _Part(ctypes.Structure):
    """`Part` of native.cpp."""

    _fields_ = (
        ("out", ctypes.c_void_p),  # (N, K, slots, G, E)
        ("slot", ctypes.c_void_p),  # (R,) int64
        ("weight", ctypes.c_void_p),  # (E,) float32, or null
        ("heads", ctypes.c_int64),  # K
        ("group", ctypes.c_int64),  # G
        ("slots", ctypes.c_int64),  # of one sequence
    )


class _PrefixKV(ctypes.Structure):
    """`PrefixKV` of native.cpp: one sequence at one layer."""

    # states (2, K, L + P, E); scale (2, K, L + P) float32, or null; slots = L + P
    _fields_ = (("states", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("slots", ctypes.c_int64))


class NativeKernels:
    """`Kernels` of compiled code, for CPU tensors: float32, bfloat16, and int8 products in a float32 run."""

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __reduce__(self) -> tuple[Callable[..., NativeKernels], tuple[()]]:
        """Pickled, as a model that is sent to another process, it is whatever is compiled there."""
        return _loaded_again, ()

    def quantize(self, x: Tensor) -> Quantized:
        """As `Kernels.quantize`."""
        x = x.float().contiguous()
        out = Quantized(torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x)))  # (R, D), (R,)
        self._call("quantize", x, *x.shape, *_activation(out))
        return out

    def norm(self, x: Tensor, weight: Tensor, eps: float, *, quantized: bool) -> Activation:
        """As `Kernels.norm`."""
        out = _empty(x.shape, x.dtype, quantized)
        suffix = "i8" if quantized else SUFFIXES[x.dtype]
        self._call(f"norm_{suffix}", x, weight, ctypes.c_float(eps), *x.shape, *_activation(out))
        return out

    def add_norm(
        self, x: Tensor, branch: Product, weight: Tensor, next_weight: Tensor, eps: float, *, quantized: bool
    ) -> Activation:
        """As `Kernels.add_norm`."""
        out = _empty(x.shape, x.dtype, quantized)
        # x + norm(branch) goes into the second norm as float32, before x is rounded to the stream's dtype
        name = f"add_norm_{_suffix(branch, quantized)}"
        epsilon = ctypes.c_float(eps)
        self._call(name, x, *_product(branch), weight, next_weight, epsilon, *x.shape, *_activation(out))
        return out

    def gated_gelu(self, gate_up: Product, dtype: torch.dtype, *, quantized: bool) -> Activation:
        """As `Kernels.gated_gelu`."""
        rows, columns = _values(gate_up).shape  # R, 2·I
        out = _empty((rows, columns // 2), dtype, quantized)  # (R, I)
        name = f"gated_gelu_{_suffix(gate_up, quantized)}"
        self._call(name, *_product(gate_up), rows, columns // 2, *_activation(out))
        return out

    def split_heads(
        self,
        product: Product,
        *,
        queries: Heads | None,
        keys: Heads | None,
        values: Heads | None,
        rope: Rope | None,
        eps: float,
    ) -> None:
        """As `Kernels.split_heads`."""
        given = [part for part in (queries, keys, values) if part is not None]  # in the order of their columns
        parts = (_Part * len(given))(*(_part(heads) for heads in given))
        rotation = (None, None, None) if rope is None else (rope.cos, rope.sin, rope.position)
        self._call(
            f"split_heads_{_suffix(product, isinstance(product, Accumulated))}",
            *_product(product),
            *_values(product).shape,
            parts,
            len(given),
            given[0].out.shape[-1],  # E
            ctypes.c_float(eps),
            *rotation,
        )

    def locate(self, cached: Sequence[PrefixKV]) -> Sequence[Tensor]:
        """As `Kernels.locate`: nothing."""
        return ()

    def load_kv(self, cached: Sequence[PrefixKV], located: Sequence[Tensor], index: int, out: Tensor) -> None:
        """As `Kernels.load_kv`."""
        assert len({entry.states.dtype for entry in cached}) == 1
        entries = (_PrefixKV * len(cached))(*(_cached(entry, index) for entry in cached))
        name = f"load_kv_{PREFIX_SUFFIXES[cached[0].states.dtype]}_{SUFFIXES[out.dtype]}"
        _, sequences, heads, slots, width = out.shape  # (2, N, K, S, E)
        self._call(name, entries, out, sequences, heads, slots, width)

    def visible(self, spans: Tensor, keys: int, group: int) -> Tensor:
        """As `Kernels.visible`: the spans (N, T, 4) themselves, of which the softmax is computed. No mask is made."""
        return spans

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """As `Kernels.attend`; `visible` holds the spans (N, T, 4) int32."""
        sequences, heads, rows, _ = query.shape  # N, K, T·G
        queries, keys = visible.shape[1], key.shape[2]  # T, S
        query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # (N·K, …, E)
        out = torch.empty_like(query)  # (N·K, T·G, E)
        # Two products with a softmax in place between them, for so many heads that their scores stay in the cache
        step = max(1, SCORE_BYTES // (rows * keys * query.element_size()))
        for start in range(0, len(query), step):
            some = slice(start, start + step)
            scores = torch.bmm(query[some], key[some].transpose(1, 2))  # (n, T·G, E) @ (n, E, S) -> (n, T·G, S)
            # `start` says which spans are theirs: all heads of a sequence have the same
            shape = (start, len(scores), heads, queries, rows // queries, keys)  # rows // queries = G
            self._call(f"softmax_{SUFFIXES[scores.dtype]}", scores, visible, *shape)
            # slots that are not seen have weight 0 now
            torch.bmm(scores, value[some], out=out[some])  # (n, T·G, S) @ (n, S, E)
        return out.unflatten(0, (sequences, heads))  # (N·K, T·G, E) -> (N, K, T·G, E)

    @property
    def int8_instructions(self) -> str:
        """What `multiply_int8` uses: `AMX`, `AVX-512 VNNI`, `AVX-VNNI`, `AVX2`, `dot product`, or `plain`."""
        self._library.int8_instructions.restype = ctypes.c_char_p
        name: bytes = self._library.int8_instructions()
        return name.decode("ascii")

    def multiply_int8(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        """Write x · weightᵀ to `out`, exactly: x (R, D) int8, weight (O, D) int8, out (R, O) int32."""
        self._call("multiply_int8", x, weight, len(x), *weight.shape, out)

    def _call(self, name: str, *arguments: object) -> None:
        """Tensors go by address, whole numbers as int64; the number of threads comes last."""
        getattr(self._library, name)(*map(_argument, arguments), ctypes.c_int(torch.get_num_threads()))


def _loaded_again() -> NativeKernels:
    library = native_library()
    if library is None:
        raise UsageError("the model was sent here by a process with native kernels, which this one cannot load")
    return NativeKernels(library)


def _argument(value: object) -> object:
    if isinstance(value, Tensor):
        assert value.is_contiguous()  # native code knows addresses and sizes, no strides
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else value


def _values(product: Product) -> Tensor:
    return product.values if isinstance(product, Accumulated) else product


def _activation(x: Activation) -> tuple[Tensor, Tensor | None]:
    return (x.values, x.scale) if isinstance(x, Quantized) else (x, None)


def _product(x: Product) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return (x.values, x.row_scale, x.column_scale) if isinstance(x, Accumulated) else (x, None, None)


def _suffix(product: Product, quantized: bool) -> str:
    # of int32 sums: `i8` where the next product takes int8, `i8_f32` where float32 comes out, as of the last layer
    if isinstance(product, Accumulated):
        return "i8" if quantized else "i8_f32"
    return SUFFIXES[product.dtype]


def _empty(shape: tuple[int, ...], dtype: torch.dtype, quantized: bool) -> Activation:
    if quantized:
        return Quantized(torch.empty(shape, dtype=torch.int8), torch.empty(shape[0]))  # (R, D), (R,) float32
    return torch.empty(shape, dtype=dtype)


def _part(heads: Heads) -> _Part:
    _, kv_heads, slots, group, _ = heads.out.shape  # (N, K, slots, G, E)
    weight = None if heads.weight is None else heads.weight.data_ptr()
    return _Part(heads.out.data_ptr(), heads.slot.data_ptr(), weight, kv_heads, group, slots)


def _cached(entry: PrefixKV, index: int) -> _PrefixKV:
    # `[index]` is a view: its address lies in a tensor that the caller holds until the call is over
    scale = None if entry.scale is None else entry.scale[index].data_ptr()
    return _PrefixKV(entry.states[index].data_ptr(), scale, entry.states.shape[3])  # L + P
