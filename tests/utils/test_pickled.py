"""PyTorch's files: what they hold, and what damaged and hostile ones cannot do."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import resource
import signal
import struct
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import forked
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ssl_bench.errors import UserError
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import resume, training_state
from ssl_bench.utils import pickled

NUMBERS = 1000
in_one_folder = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def state() -> dict[str, Any]:
    """As a training has it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    parts = {"method": model.state_dict(), "optimizer": optimizer.state_dict()}
    return {"step": 7, "seconds": 0.5, "losses": torch.randn(3), "none": None, **parts}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and [*a] == [*b] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


class TestRead:
    """What is read is what was saved."""

    @pytest.mark.parametrize("is_zip", [True, False])
    def test_state_of_a_training(self, is_zip: bool, tmp_path: Path) -> None:
        torch.save(state(), tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
        assert same(state(), pickled.read(tmp_path / "x.pt"))

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_every_protocol(self, protocol: int, tmp_path: Path) -> None:
        content = {"a": torch.ones(2), "b": [1, 2.5, "ä", None, (True, 2**70)], "c": {"d": []}}
        torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
        assert same(content, pickled.read(tmp_path / "x.pt"))

    @pytest.mark.parametrize(
        "dtype",
        [
            *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8),
            *(torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn),
        ],
        ids=str,
    )
    def test_types_and_views(self, dtype: torch.dtype, tmp_path: Path) -> None:
        whole = torch.arange(24).to(dtype).reshape(4, 6)
        content = {"t": whole.t(), "part": whole[1:3, ::2], "empty": whole[:0], "one": whole[2, 3]}
        for is_zip in (True, False):
            torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
            back = pickled.read(tmp_path / "x.pt")
            for name, tensor in content.items():
                assert back[name].dtype == dtype and back[name].shape == tensor.shape
                assert back[name].tolist() == tensor.tolist()
            assert (
                back["t"].untyped_storage().data_ptr() == back["part"].untyped_storage().data_ptr()
            )

    def test_parameters_and_tensors_with_attributes(self, tmp_path: Path) -> None:
        parameter = torch.nn.Parameter(torch.ones(3))
        marked = torch.arange(3.0)
        marked.mark = "x"  # type: ignore[attr-defined]
        torch.save(OrderedDict(p=parameter, m=marked), tmp_path / "x.pt")
        back = pickled.read(tmp_path / "x.pt")
        assert type(back["p"]) is torch.Tensor and back["p"].tolist() == [1, 1, 1]
        assert back["m"].tolist() == [0, 1, 2] and not hasattr(back["m"], "mark")

    def test_what_is_no_tensor_becomes_nothing_but_its_name(self, tmp_path: Path) -> None:
        content = {
            "best": np.float64(0.5),
            "epoch": np.int64(3),
            "array": np.arange(3),
            "path": Path("/x"),
            "counter": Counter([1]),
            "sparse": torch.eye(2).to_sparse(),
            "meta": torch.ones(2, device="meta"),
            "device": torch.device("cpu"),
            "set": {(1, 2)},
            "weight": torch.ones(2),
        }
        torch.save(content, tmp_path / "x.pt")
        back = pickled.read(tmp_path / "x.pt")
        assert back.keys() == content.keys()
        assert back.pop("weight").tolist() == [1, 1]
        assert all(isinstance(value, pickled.Left) for value in back.values())
        assert "numpy" in back["best"].name

    def test_without_check_sums(self, tmp_path: Path) -> None:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state(), tmp_path / "x.pt")
        finally:
            torch.serialization.set_crc32_options(True)
        assert same(state(), pickled.read(tmp_path / "x.pt"))


class _Reduced:
    """Pickled as whatever a call makes."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


anything = st.recursive(
    st.none()
    | st.integers(-(2**65), 2**65)
    | st.sampled_from(["f8", "O8", "|V8", "<", "|", "O", "", b"f8", b"\xff" * 8, 1.5]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=6,
)


def test_no_state_of_a_numpy_type_does_anything(tmp_path: Path) -> None:
    """They are read in another process, which a crash would end."""
    files: list[Path] = []

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.lists(anything, min_size=1, max_size=3).map(tuple),
        st.lists(anything, max_size=9).map(tuple)
        | st.integers(0, 7).flatmap(
            lambda at: anything.map(lambda value: (*_STATE[:at], value, *_STATE[at + 1 :]))
        ),
        st.binary(max_size=9),
        st.booleans(),
    )
    def write(arguments: tuple[Any, ...], own: Any, data: bytes, is_scalar: bool) -> None:
        dtype = _Reduced(np.dtype, arguments, own)
        scalar = _Reduced(np.float64(0).__reduce__()[0], (dtype, data))
        files.append(tmp_path / f"{len(files)}.pt")
        content = {"model": {"w": torch.ones(2), "best": scalar if is_scalar else dtype}}
        torch.save(content, files[-1])

    write()
    forked.together(read_each, 1, tmp_path)


def read_each(_: int, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        model = pickled.read(path)["model"]
        assert model["w"].tolist() == [1, 1] and type(model["best"]) is pickled.Left


_STATE = (3, "<", None, None, None, -1, -1, 0)


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(count: int, offset: int, size: list[int], stride: list[int], key: str = "0") -> bytes:
    """A program that makes a tensor of a storage of so many float32."""
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu")
    lists = (b"(" + b"".join(map(number, each)) + b"t" for each in (size, stride))
    rebuilt = b"(" + storage + number(count) + b"tQ" + number(offset) + b"".join(lists)
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + rebuilt + b"\x89" + hooks + b"tR"


def archive(
    data: bytes, records: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/data/0", bytes(4 * NUMBERS))
        for key, record in (records or {}).items():
            file.writestr(f"x/{key}", record)
    return content.getvalue()


def old(data: bytes) -> bytes:
    """The same as files had it before torch 1.6."""
    begin = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in begin)
    return head + data + pickle.dumps(["0"], 2) + struct.pack("<q", NUMBERS) + bytes(4 * NUMBERS)


BIG = 10**11
HOSTILE = {
    "beyond": tensor(NUMBERS, 0, [NUMBERS + 1], [1]),
    "offset": tensor(NUMBERS, NUMBERS, [1], [1]),
    "negative offset": tensor(NUMBERS, -1, [1], [1]),
    "negative stride": tensor(NUMBERS, 9, [2], [-1]),
    "negative size": tensor(NUMBERS, 0, [-2], [1]),
    "huge stride": tensor(NUMBERS, 0, [2], [2**62]),
    "huge storage": tensor(BIG, 0, [2], [1]),
    "negative storage": tensor(-2, 0, [2], [1]),
    "other storage": tensor(NUMBERS - 1, 0, [2], [1]),
    "dimensions": tensor(NUMBERS, 0, [1] * 5000, [1] * 5000),
    "outside": tensor(NUMBERS, 0, [2], [1], key="../../../x"),
    "called text": text("x") + b")R",
    "called tensor": tensor(NUMBERS, 0, [2], [1]) + b")R",
    "nested": (name("torch._tensor", "_rebuild_from_type_v2") + b"(") * 5000 + b"N" + b"tR" * 5000,
}
LEFT = {
    "bytearray": name("builtins", "bytearray") + number(BIG) + b"\x85R",
    "tensor of a size": name("torch", "FloatTensor") + number(BIG) + b"\x85R",
    "new tensor of a size": name("torch", "Tensor") + number(BIG) + b"\x85\x81",
    "storage of a size": name("torch.storage", "UntypedStorage") + number(BIG) + b"\x85R",
    "repeated": tensor(NUMBERS, 0, [BIG], [0]),
    "filled again": tensor(NUMBERS, 0, [2], [1]) + b"(" + number(BIG) + b"tb",
    "slow to hash": b"}" + b"K\x01\x85" + b"2\x86" * 200 + b"Ns",
    "doubled": b")" + b"2\x86" * 200,
    "many indices": b"Nr\xff\xff\xff\xff",
}


def read_within(_: int, folder: Path, output: Path, gigabytes: int = 2) -> None:
    """Write what reading each file says, in a process of so little memory and a minute."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + gigabytes * 10**9
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.alarm(60)
    with output.open("w") as lines:
        for path in sorted(folder.iterdir()):
            try:
                print(path.name, weights.read(path).keys(), file=lines)
            except UserError as error:
                print(path.name, "refused", error, file=lines)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_hostile_files_take_no_memory_and_get_a_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for key, part in HOSTILE.items():
        (tmp_path / f"{key} zip refused").write_bytes(archive(program(b"}", text("w"), part, b"s")))
        (tmp_path / f"{key} old refused").write_bytes(old(program(b"}", text("w"), part, b"s")))
    for key, part in LEFT.items():
        content = program(
            b"}", text("w"), part, b"s", text("v"), tensor(NUMBERS, 0, [2], [1]), b"s"
        )
        (tmp_path / f"{key} zip read").write_bytes(archive(content))
        (tmp_path / f"{key} old read").write_bytes(old(content))
    plain = program(b"}", text("w"), tensor(NUMBERS, 0, [2], [1]), b"s")
    more = {
        "plain zip read": archive(plain),
        "plain old read": old(plain),
        "bomb": archive(plain, compression=zipfile.ZIP_DEFLATED),
        "bomb of a pickle": archive(program(b"}" * 10**7), compression=zipfile.ZIP_DEFLATED),
        "long pickle": archive(program(b"}" * 10**7)),
        "script": archive(plain, {"constants.pkl": plain}),
        "other order": archive(plain, {"byteorder": b"big"}),
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"N.",
        "buffer": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"N.",
        "compressed": gzip.compress(archive(plain)),
        "safe": struct.pack("<Q", 2**62) + b"{}",
        "safe and large": _safetensors({"w": ["F32", [2**40, 2**20], [0, 2**62]]}),
        "safe and sealed": _safetensors({"__metadata__": {"ssl_bench": "7"}}),
    }
    for key, content in more.items():
        (tmp_path / (key if key.endswith("read") else f"{key} refused")).write_bytes(content)
    output = tmp_path_factory.mktemp("said") / "lines.txt"
    forked.together(read_within, 1, tmp_path, output)
    lines = output.read_text().splitlines()
    assert len(lines) == 2 * (len(HOSTILE) + len(LEFT)) + len(more), "each has one line"
    wrong = [line for line in lines if ("refused refused" in line) == (" read dict_keys" in line)]
    assert not wrong


def _safetensors(header: dict[str, Any]) -> bytes:
    named = {
        name: dict(zip(("dtype", "shape", "data_offsets"), value, strict=True))
        if isinstance(value, list)
        else value
        for name, value in header.items()
    }
    content = json.dumps(named).encode()
    return struct.pack("<Q", len(content)) + content


@given(st.binary(max_size=200), st.integers(0, 10**6))
@in_one_folder
def test_programs_with_other_bytes_are_read_or_refused(
    tmp_path: Path, noise: bytes, at: int
) -> None:
    whole = program(b"}", text("model"), b"}", text("w"), tensor(NUMBERS, 3, [4, 5], [5, 1]), b"ss")
    at %= len(whole)
    path = tmp_path / "x.pt"
    path.write_bytes(archive(whole[:at] + noise + whole[at + len(noise) :]))
    try:
        weights.read(path)
    except UserError as error:
        assert "\n" not in str(error)


class TestFlippedBits:
    """One wrong bit is noticed, or is where nothing is read."""

    spec: ClassVar = EncoderSpec(
        "vit_nano", 8, 4, 1, (0.5,), (0.25,), {"embed_dim": 8, "depth": 1}, norm_eps=1e-5
    )

    @classmethod
    @functools.cache
    def encoder(cls) -> torch.nn.Module:
        return backbones.build(cls.spec, 0)

    @given(st.data())
    @in_one_folder
    def test_in_the_state_of_a_training(self, tmp_path: Path, data: st.DataObject) -> None:
        path = tmp_path / "checkpoint.pt"
        if not path.exists():
            resume.save(tmp_path / "whole", state())
        _flip(tmp_path / "whole", path, data)
        try:
            back = training_state.read(tmp_path)
        except UserError as error:
            assert "checkpoint.pt" in str(error) and "\n" not in str(error)
        else:
            assert same(state(), back)

    @pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
    @given(data=st.data())
    @in_one_folder
    def test_in_an_encoder(self, name: str, tmp_path: Path, data: st.DataObject) -> None:
        spec, encoder = self.spec, self.encoder()
        if not (tmp_path / "whole").exists():
            weights.save(encoder, spec, tmp_path)
            (tmp_path / "whole").write_bytes((tmp_path / name).read_bytes())
        _flip(tmp_path / "whole", tmp_path / name, data)
        try:
            back, its_spec = weights.load(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert its_spec == spec and same(dict(encoder.state_dict()), dict(back.state_dict()))

    @given(st.data())
    @in_one_folder
    def test_in_other_weights(self, tmp_path: Path, data: st.DataObject) -> None:
        content = {"decoder.w": torch.arange(99.0), "center": torch.ones(3, 2)}
        weights.write(tmp_path / "whole", content)
        _flip(tmp_path / "whole", tmp_path / "method.safetensors", data)
        try:
            back = weights.read(tmp_path / "method.safetensors")
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert same(content, {name: back[name] for name in content})

    def test_every_single_weight_counts(self, tmp_path: Path) -> None:
        for save in (torch.save, lambda content, path: weights.write(path, content)):
            content = {"w": torch.arange(500.0)}
            save(content, tmp_path / "x")
            whole = (tmp_path / "x").read_bytes()
            begin = whole.index(content["w"].numpy().tobytes())
            for at in range(begin, begin + 2000, 37):
                (tmp_path / "x").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
                with pytest.raises(UserError, match="damaged"):
                    weights.read(tmp_path / "x")

    def test_files_without_a_digest_are_read(self, tmp_path: Path) -> None:
        spec, encoder = self.spec, backbones.build(self.spec, 0)
        weights.save(encoder, spec, tmp_path)
        save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
        assert same(dict(encoder.state_dict()), dict(weights.load(tmp_path)[0].state_dict()))

    @pytest.mark.parametrize("start", [b"\x80\x01", b"PK"])
    def test_whatever_their_headers_length(self, start: bytes, tmp_path: Path) -> None:
        """It comes first in a file, and its bytes may be those that pickles and zips begin with."""
        length = int.from_bytes(start, "little")
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        content = start.ljust(8, b"\0") + header.ljust(length).encode() + struct.pack("<f", 3.0)
        (tmp_path / "x.safetensors").write_bytes(content)
        assert weights.read(tmp_path / "x.safetensors")["a"].item() == 3

    def test_weights_beside_another_spec_are_refused(self, tmp_path: Path) -> None:
        weights.save(backbones.build(self.spec, 0), self.spec, tmp_path)
        stored = json.loads((tmp_path / "encoder.json").read_text())
        (tmp_path / "encoder.json").write_text(json.dumps(stored | {"mean": [0.4]}))
        with pytest.raises(UserError, match=r"encoder\.json is not as it was written"):
            weights.load(tmp_path)


def _flip(whole: Path, into: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    into.write_bytes(content)
