"""A plain text as data: its sentences, documents and splits, and what learns from it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_bench import data
from ssl_bench.api import registry
from ssl_bench.api.step import Step
from ssl_bench.data import Split
from ssl_bench.errors import UserError
from ssl_bench.evaluation import runner
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup

Command = Callable[..., tuple[int, str, str]]


def write(path: Path, documents: int = 12, sentences: int = 4) -> Path:
    texts = (
        "\n".join(f"sentence {n} of story {d}" for n in range(sentences)) for d in range(documents)
    )
    path.write_text("\n\n".join(texts) + "\n")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write(tmp_path / "stories.txt")


def told(split: Split) -> list[tuple[str, int]]:
    assert split.captions and split.documents
    return [(own[0], number) for own, number in zip(split.captions, split.documents, strict=True)]


def test_sentences_and_documents_are_read_and_the_end_is_held_out(text: Path) -> None:
    found = data.load(str(text))
    expected = [(f"sentence {n} of story {d}", d) for d in range(12) for n in range(4)]
    assert told(found.train) + told(found.test) == expected
    assert len(found.test) == 8  # the two documents nearest to a fifth of 48 sentences
    assert found.unlabelled and found.imageless and not found.classes
    validation = data.load(f"{text}@validation")
    assert told(validation.train) + told(validation.test) == expected[:40]
    assert len(validation.test) == 4
    text.write_text(text.read_text().replace("\n\n", "\n", 1))
    joined = data.load(str(text))
    assert (joined.train.captions, joined.test.captions) == (
        found.train.captions,
        found.test.captions,
    )
    assert joined.fingerprint != found.fingerprint, "where a document ends decides what comes next"


def test_a_single_document_is_cut_between_sentences(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("\ufeff  first \n" + "more\n" * 9)
    found = data.load(str(path))
    assert (len(found.train), len(found.test)) == (8, 2)
    assert told(found.train)[0] == ("first", 0)


def test_a_part_of_a_text_has_no_next_sentence_over_a_gap(text: Path) -> None:
    part = data.load(str(text)).train.subset([0, 1, 3, 4, 5, 8])
    assert part.documents == (0, 0, 1, 2, 2, 3)
    assert part.captions and part.captions[2] == ("sentence 3 of story 0",)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "0 sentences"), (b"\n\nalone\n", "1 sentence"), (b"a\n\xff\n", "UTF-8")],
)
def test_a_text_that_is_none_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        data.load(str(path))
    assert "\n" not in str(caught.value)


def test_what_a_text_has_not_is_refused(text: Path) -> None:
    for source, storage in ((f"{text}@train", "memory"), (str(text), "stream")):
        with pytest.raises(UserError, match="would work"):
            data.load(source, storage=storage)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="texts alone"):
        data.list_images(str(text))


def train(ssl_bench: Command, text: Path, *more: Any) -> Path:
    runs = text.parent / f"runs{len(list(text.parent.glob('runs*')))}"
    small = ("--text-width", 16, "--text-heads", 2, "--text-depth", 1, "--precision", "fp32")
    code, out, err = ssl_bench(
        *("run", "--method", "bert", "--data", text, "--epochs", 2, "--batch-size", 8),
        *("--runs-dir", runs, *small, *more),
    )
    assert code == 0, err
    [folder] = runs.glob("bert-*")
    (folder / "told").write_text(out + err)
    return folder


def test_bert_learns_from_a_text_with_and_without_the_next_sentence(
    text: Path, ssl_bench: Command
) -> None:
    plain, pairs = (train(ssl_bench, text, "--loss", loss) for loss in ("mlm", "mlm,nsp"))
    for folder in (plain, pairs):
        [scores] = [json.loads(each.read_text()) for each in folder.glob("evals/*/scores.json")]
        assert scores["eval"] == "masked-words" and 0 <= scores["scores"]["accuracy"] <= 100
        told = (folder / "told").read_text()
        assert "no labels" in told and "linear" in told and "knn" in told
    steps = [json.loads(line) for line in (pairs / "metrics.jsonl").read_text().splitlines()]
    assert all(step["losses"]["nsp"] > 0 and step["losses"]["mlm"] > 0 for step in steps)


def table(path: Path, count: int = 40, **more: Any) -> Path:
    rows = [
        {"text": f"word {n} is {'good' if n % 2 else 'bad'}", "label": "pn"[n % 2], **more}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_of_texts_has_labels(tmp_path: Path) -> None:
    found = data.load(str(table(tmp_path / "reviews.jsonl")))
    assert found.classes == ("n", "p") and not found.unlabelled and found.imageless
    for split in (found.train, found.test):
        texts = [own[0] for own in split.captions or ()]
        assert [("good" in text) for text in texts] == [n == 0 for n in split.labels_N.tolist()]
    assert len(found.train) + len(found.test) == 40 and 0 < len(found.test) < 20
    assert "held out" in found.note
    csv = tmp_path / "reviews.csv"
    csv.write_text("sentence,label,split\n" + "good,1,train\nbad,0,train\n" * 5 + "so,10,test\n")
    with pytest.raises(UserError, match="class '10'"):
        data.load(str(csv))
    csv.write_text(csv.read_text().replace("so,10,test", "so,1,test\nwell,0,test"))
    found = data.load(str(csv))
    assert found.classes == ("0", "1") and found.test.labels_N.tolist() == [1, 0]
    assert [own[0] for own in found.test.captions or ()] == ["so", "well"]
    assert len(data.load(f"{csv}@validation").test) == 1
    assert len(data.load(f"{csv}@whole").train) + len(data.load(f"{csv}@whole").test) == 12


def test_rows_without_a_text_or_a_label_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "reviews.jsonl")
    more = [{"text": " ", "label": "p"}, {"text": None, "label": "p"}, {"text": "so", "label": ""}]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in more))
    found = data.load(str(path))
    assert len(found.train) + len(found.test) == 40
    assert "2 rows without a text" in found.left_out and "1 rows without a label" in found.left_out
    path.write_text("".join(json.dumps({"text": f"a {n}", "label": "x"}) + "\n" for n in range(30)))
    found = data.load(str(path))
    assert found.unlabelled and not found.classes
    path.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(UserError, match="row 2"):
        data.load(str(path))
    path.write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no rows"):
        data.load(str(path))


def test_texts_of_any_writer(tmp_path: Path) -> None:
    """Half of a surrogate pair is a question mark, and a column without a name is no class."""
    path = tmp_path / "texts.jsonl"
    path.write_text('{"Text": "a \\ud83d", "split": "train"}\n{"Text": "b", "split": "test"}\n')
    assert data.load(str(path)).train.captions == (("a ?",),)
    path = tmp_path / "texts.csv"
    path.write_text(",text\n" + "".join(f"{n},word {n}\n" for n in range(30)))
    assert not data.load(str(path)).classes


def stored(path: Path, labels: list[int]) -> Path:
    """Parquet as the Hub has it: numbers with names, -1 where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table(
        {"idx": [*labels], "sentence": [f"{path.stem} {n}" for n in range(len(labels))]}
    )
    features = {"label": {"names": ["worse", "better"], "_type": "ClassLabel"}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(
        rows.append_column("label", pa.array(labels)).replace_schema_metadata(noted), path
    )
    return path


def test_parquet_of_texts(tmp_path: Path) -> None:
    """A test split without labels gives way to validation, as with images."""
    whole = data.load(str(stored(tmp_path / "one.parquet", [0, 1] * 20)))
    assert whole.classes == ("better", "worse") and whole.imageless and "held out" in whole.note
    assert len(whole.train) + len(whole.test) == 40
    for name, labels in (("train", [0, 1, 1]), ("validation", [1, 0, -1]), ("test", [-1, -1])):
        stored(tmp_path / "of" / "data" / f"{name}-00000-of-00001.parquet", labels)
    found = data.load(str(tmp_path / "of"))
    assert found.train.labels_N.tolist() == [1, 0, 0] and found.test.labels_N.tolist() == [0, 1]
    assert found.test.first_captions[0] == "validation-00000-of-00001 0"
    assert "1 rows without a label" in found.left_out and "split data/test" in str(found.notes)
    assert "'data/test' has no labels" in found.note
    assert len(data.load(f"{tmp_path / 'of'}@whole").train) > 3
    with pytest.raises(UserError, match="texts alone"):
        data.list_images(str(tmp_path / "of"))


def test_sentence_vectors_are_probed_where_rows_have_labels(
    tmp_path: Path, ssl_bench: Command
) -> None:
    folder = train(ssl_bench, table(tmp_path / "reviews.jsonl"), "--evals", "knn,masked-words")
    names = {json.loads(each.read_text())["eval"] for each in folder.glob("evals/*/scores.json")}
    assert names == {"knn", "masked-words"}
    code, _, err = ssl_bench(
        *("run", "--method", "bert", "--data", tmp_path / "reviews.jsonl", "--loss", "mlm,nsp")
    )
    assert code == 2 and "documents" in err and err.count("\n") == 1


class Killed(BaseException):
    """Stands for the death of the process."""


def test_pairs_of_sentences_are_resumed_bit_for_bit(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, found = registry.find("method", "bert"), data.load(str(text))
    config = dataclasses.replace(helpers.small(plugin), loss=("mlm", "nsp"))
    spec = EncoderSpec("vit_micro", 1, None, 1, found.mean, found.std)
    spec = setup.with_text(spec, plugin.load_class(), config, found.train.captions or ())
    plan = helpers.plan(plugin, spec, found, config=config)
    plan = dataclasses.replace(plan, encoder=spec, batch_size=8)
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def go(folder: Path, until: int) -> Path:
        method = setup.build_method(plugin.load_class(), config, spec, 0, 0)

        def dies(step: Step) -> None:
            if step.number == until:
                raise Killed

        monkeypatch.setattr(method, "after_optimizer_step", dies)
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(Killed):
            pretrain.pretrain(method, found, plan, folder, helpers.CPU)
        return folder

    whole, killed = go(tmp_path / "whole", 99), go(tmp_path / "killed", 3)
    assert not (killed / "encoder.safetensors").exists()
    go(killed, 99)
    assert helpers.weights(killed) == helpers.weights(whole)


def test_labels_make_a_probe_of_sentence_vectors(text: Path, ssl_bench: Command) -> None:
    folder = train(ssl_bench, text, "--loss", "mlm,nsp", "--evals", "none")
    code, _, err = ssl_bench(
        *("eval", folder, "--data", "fashion-captions", "--evals", "knn"),
        *("--runs-dir", folder.parent),
    )
    assert code == 0, err
    [found] = folder.glob("evals/knn-*/scores.json")
    knn = registry.find("eval", "knn")
    of_images = runner.protocol(knn, knn.config(), data.load("fashion-captions"))
    record = json.loads(found.read_text())
    assert record["reads"] == "text" and record["protocol"] != of_images
    code, _, err = ssl_bench("eval", folder, "--evals", "linear", "--runs-dir", folder.parent)
    assert code == 2 and "no labels" in err and err.count("\n") == 1


def test_what_cannot_read_texts_says_so(text: Path, ssl_bench: Command) -> None:
    for command in (
        ("run", "--method", "mae", "--data", text),
        ("run", "--method", "random-init", "--data", text, "--evals", "attention"),
        ("run", "--method", "albef", "--data", text),
        ("data", "prepare", text, "-o", text.parent / "copy"),
    ):
        code, _, err = ssl_bench(*command)
        assert code == 2 and err.count("\n") == 1 and "Traceback" not in err, err
        assert "images" in err, err
    one = text.with_name("one.txt")
    one.write_text("a\nb\nc\nd\ne\nf\n")
    code, _, err = ssl_bench("run", "--method", "bert", "--data", one, "--loss", "mlm,nsp")
    assert code == 2 and "document" in err and err.count("\n") == 1
