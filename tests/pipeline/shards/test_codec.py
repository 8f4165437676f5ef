import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from pipeline.shards.codec import CODECS, Codec, dequantise
from pipeline.shards.schema import CodecName

NAMES: tuple[CodecName, ...] = ("float16", "int8", "sign")
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
Array = npt.NDArray[np.float32]

exactly_zero = st.just(0.0)
small_or_large = st.builds(lambda digits, power: digits * 10.0**power, st.floats(-1, 1), st.integers(-8, 4))
elements = st.one_of(exactly_zero, small_or_large, st.floats(-1, 1)).map(
    lambda x: float(np.float32(x)) if abs(x) > 1e-12 else 0.0
)
"""Nothing so small that float32 has no digits left for its square."""
shapes = st.tuples(st.integers(1, 5), st.integers(1, 21))
deltas = arrays.arrays(np.float32, shapes, elements=elements).map(torch.from_numpy)


def decoded(codec: Codec, delta: Tensor) -> Tensor:
    return dequantise(*codec.quantise(delta))


def l2(delta: Tensor) -> Array:
    return np.linalg.norm(delta.double().numpy(), axis=-1)


def linf(delta: Tensor) -> Array:
    return np.abs(delta.double().numpy()).max(axis=-1)


@every_codec
@given(delta=deltas)
def test_no_token_leaves_the_ball_its_perturbation_was_found_in(codec: Codec, delta: Tensor) -> None:
    after = decoded(codec, delta)
    assert (l2(after) <= l2(delta) * (1 + 1e-6)).all()
    assert (linf(after) <= linf(delta) * (1 + 1e-6)).all()


@given(delta=deltas)
def test_int8_is_off_by_half_a_level_at_most_and_float16_by_half_a_unit_in_the_last_of_its_eleven_bits(delta: Tensor) -> None:
    width, found = delta.shape[-1], {name: decoded(CODECS[name], delta) for name in ("int8", "float16")}
    assert (l2(found["int8"] - delta) <= np.sqrt(width) * linf(delta) / 254 * (1 + 1e-4)).all()
    assert (l2(found["float16"] - delta) <= l2(delta) * 2**-11 + np.sqrt(width) * linf(delta) * 2**-24).all()
    for after in found.values():
        assert (after[delta == 0] == 0).all()


@given(delta=deltas, other=st.floats(0, 2))
def test_sign_is_the_nearest_vector_of_one_magnitude(delta: Tensor, other: float) -> None:
    after = decoded(CODECS["sign"], delta).double()
    assert torch.equal(torch.sign(after)[delta != 0], torch.sign(delta.double())[delta != 0])
    stretched = after * other
    assert (l2(after - delta) <= l2(stretched - delta) * (1 + 1e-6) + 1e-12).all()


@every_codec
@given(delta=deltas, data=st.data())
def test_a_token_that_was_not_perturbed_stays_exactly_so(codec: Codec, delta: Tensor, data: st.DataObject) -> None:
    spared = data.draw(arrays.arrays(np.bool_, delta.shape[0]))
    delta = torch.where(torch.from_numpy(spared)[:, None], 0.0, delta)
    after = decoded(codec, delta)
    assert torch.isfinite(after).all()
    assert (after[torch.from_numpy(spared)] == 0).all()


@every_codec
@given(delta=deltas)
def test_codes_and_scales_survive_being_bytes_at_any_width(codec: Codec, delta: Tensor) -> None:
    codes, _ = codec.quantise(delta)
    held = codec.pack(codes.numpy())
    for given_as in (held, memoryview(held)):
        unpacked = codec.unpack(given_as, delta.shape[-1])
        assert unpacked.dtype == codec.dtype
        np.testing.assert_array_equal(unpacked, codes.numpy())


@every_codec
@pytest.mark.parametrize("width", [1, 8, 30])
def test_a_token_takes_as_many_bytes_as_its_codec_says(codec: Codec, width: int) -> None:
    codes, scales = codec.quantise(torch.randn(3, width))
    assert len(codec.pack(codes.numpy())) == 3 * -(-codec.bits * width // 8)
    assert scales.dtype == torch.float32
    assert scales.shape == (3,)


def test_bytes_are_row_by_row_and_little_endian_on_every_machine() -> None:
    packed = {name: CODECS[name].pack for name in NAMES}
    assert packed["float16"](np.array([[1, -2], [0.5, 0]], np.float16)) == bytes.fromhex("003c 00c0 0038 0000")
    assert packed["int8"](np.array([[1, -2], [127, 0]], np.int8)) == bytes([1, 254, 127, 0])
    assert packed["sign"](np.array([[1, -1, 1], [-1, -1, 1]], np.int8)) == bytes([0b10100000, 0b00100000])
    assert packed["float16"](np.array([[1]], ">f2")) == bytes.fromhex("003c")


@every_codec
@given(delta=deltas)
def test_a_batch_codes_every_row_as_the_row_alone(codec: Codec, delta: Tensor) -> None:
    batch = torch.stack([delta, delta.flip(0) * 3, torch.zeros_like(delta)])
    codes, scales = codec.quantise(batch)
    for number, row in enumerate(batch):
        alone = codec.quantise(row)
        assert torch.equal(codes[number], alone[0])
        assert torch.equal(scales[number], alone[1])
