"""Text: vocabularies, captions as token ids, and BERT's encoder with its objective.

Devlin, Chang, Lee, Toutanova: *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, arXiv:1810.04805. Shapes: B texts, L tokens, D width, V words of the
vocabulary, S tokens of an image, H heads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn

from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, parse_json
from ssl_bench.utils.rng import SampleRng

BERT = "bert"
"""The backbone of an `EncoderSpec` that reads captions instead of images."""
PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_IGNORED = -100
_OF_PAIRS = ("fusion_depth", "embed_dim", "matches")
_WIDTH = 128
_TOKENS = 8
"""Texts are padded to a multiple of so many tokens."""
_MOST = 2**20
"""More words, tokens, layers or features than any text encoder has."""


@dataclass(frozen=True)
class TextSpec:
    """Everything needed to build a text encoder again, and to turn texts into its ids.

    Attributes:
        vocabulary: WordPiece's words, one a line, as in BERT's ``vocab.txt``.
        lowercase: whether texts are lower-cased and stripped of accents first.
        max_tokens: where longer texts are cut, [CLS] and [SEP] included.
        width, depth, num_heads: of the layers that read text alone.
        fusion_depth: layers after those that attend to an image, too.
        image_width: of the image's tokens; 0 without such layers.
        embed_dim: of the space that images and texts are compared in; 0 for none.
        dropout: probability, in training.
        matches: whether a head tells if a text and an image belong together.
    """

    vocabulary: str
    lowercase: bool
    max_tokens: int
    width: int
    depth: int
    num_heads: int
    fusion_depth: int = 0
    image_width: int = 0
    embed_dim: int = 0
    dropout: float = 0.0
    matches: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TextSpec:
        """Restore a spec from its ``asdict`` as JSON.

        Raises:
            UserError: no text encoder has such values.
            KeyError, TypeError: an entry is missing or has the wrong type.
        """
        spec = cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})
        counts = (spec.max_tokens, spec.width, spec.depth, spec.num_heads)
        more = (spec.fusion_depth, spec.image_width, spec.embed_dim)
        require(
            all(type(each) is int and 0 <= each <= _MOST for each in (*counts, *more))
            and min(counts) > 0
            and type(spec.vocabulary) is str
            and 0 <= spec.dropout < 1,
            "it has no sizes of a text encoder",
        )
        check_vocabulary(spec.words, "its vocabulary")
        return spec

    @property
    def words(self) -> list[str]:
        """The vocabulary, by id."""
        return self.vocabulary.split("\n")

    def id(self, word: str) -> int:
        """The id of a word of the vocabulary."""
        return _ids(self.vocabulary)[word]


@lru_cache(maxsize=8)
def _ids(vocabulary: str) -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary.split("\n"))}


def check_vocabulary(words: Sequence[str], where: str) -> None:
    """Require the special tokens, and each word once.

    Raises:
        UserError: they are not there.
    """
    lacking = [each for each in SPECIAL if each not in set(words)]
    require(
        not lacking,
        f"{where} has no {', '.join(lacking)}; one of BERT's, with {', '.join(SPECIAL)}, would do",
    )
    [(word, count)] = Counter(words).most_common(1)
    require(count == 1, f"{where} has {word!r:.40} {count} times; each word once would do")


def learn_vocabulary(texts: Iterable[str], size: int) -> str:
    """A vocabulary of the texts, in lower case: a function of the texts and the size alone.

    BERT's special tokens, then every letter, alone and as the continuation of a word, then whole
    words, the most frequent first. WordPiece spells a rarer word in letters. (`tokenizers`' own
    trainer of WordPiece chooses among pairs of equal counts by chance, so that no two trainings
    would have the same ids.)
    """
    normalize, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(w for w, _ in split.pre_tokenize_str(normalize.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, count in counts.items():
        letters.update({letter: count for letter in (word[0], *(f"##{each}" for each in word[1:]))})
    ranked = [
        *sorted(letters, key=lambda letter: (-letters[letter], letter)),
        *sorted(counts, key=lambda word: (-counts[word], word)),
    ]
    words = dict.fromkeys([*SPECIAL, *(word for word in ranked if "\n" not in word)])
    return "\n".join(list(words)[: max(size, len(SPECIAL))])


def read_vocabulary(path: Path) -> tuple[str, bool]:
    """The vocabulary in BERT's ``vocab.txt``, or in a ``tokenizer.json`` of WordPiece.

    Returns:
        The words, one a line, and whether texts are lower-cased; a list of words says so by having
        no capitals but in special tokens.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    where = f"tokenizer {str(path)!r}"
    try:
        content = load_bytes(path)
        text = content.decode()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    if not text.lstrip().startswith("{"):
        words = text.removesuffix("\n").split("\n")
        words = [word.removesuffix("\r") for word in words]
        lowercase = not any(w != w.lower() for w in words if not w.startswith("["))
    else:
        try:
            found = parse_json(content)
            model, normalizer = found["model"], found.get("normalizer") or {}
            require(
                model.get("type") == "WordPiece",
                f"{where} is a {model.get('type')}; a WordPiece such as BERT's would work",
            )
            ids = {int(number): str(word) for word, number in model["vocab"].items()}
            words = [ids[number] for number in range(len(ids))]
            lowercase = bool(normalizer.get("lowercase", True))
        except (Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} is no tokenizer.json of WordPiece; BERT's, or its vocab.txt, would work"
            ) from error
    check_vocabulary(words, where)
    return "\n".join(words), lowercase


@lru_cache(maxsize=4)
def _tokenizer(vocabulary: str, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(_ids(vocabulary), unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def tokenize(texts: Sequence[str], spec: TextSpec) -> Tensor:
    """The ids of texts: int64 ``(B, max_tokens)``, [CLS] first, [SEP] last, then [PAD].

    Longer ones are cut.
    """
    first, last, pad = map(spec.id, (CLS, SEP, PAD))
    ids_BL = torch.full((len(texts), spec.max_tokens), pad)
    for row_L, inner in zip(ids_BL, _encoded(texts, spec.vocabulary, spec.lowercase), strict=True):
        row = torch.tensor([first, *inner[: spec.max_tokens - 2], last])
        row_L[: len(row)] = row
    return ids_BL


def _encoded(texts: Iterable[str], vocabulary: str, lowercase: bool) -> Iterator[list[int]]:
    tokenizer = _tokenizer(vocabulary, lowercase)
    return (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)


def spec_of(config: Any, texts: Sequence[str], image_width: int = 0) -> TextSpec:
    """The text encoder that a method's `recipes.TextConfig` describes, for these training texts.

    Args:
        image_width: of the tokens of the image encoder beside it, if there is one, which is the
            default width, too.

    Raises:
        UserError: the tokenizer cannot be read, or the texts hold no word.
    """
    if config.tokenizer:
        vocabulary, lowercase = read_vocabulary(Path(config.tokenizer).expanduser())
    else:
        vocabulary, lowercase = learn_vocabulary(texts, config.vocabulary_size), True
    longest = 2 + max(map(len, _encoded(texts, vocabulary, lowercase)), default=0)
    require(longest > 2, "the training captions hold no words")
    return TextSpec(
        vocabulary,
        lowercase,
        min(config.max_tokens, math.ceil(longest / _TOKENS) * _TOKENS),
        config.text_width or image_width or _WIDTH,
        config.text_depth,
        config.text_heads,
        image_width=image_width,
        dropout=config.text_dropout,
        **{name: getattr(config, name) for name in _OF_PAIRS if hasattr(config, name)},
    )


def noise(spec: TextSpec, rng: SampleRng) -> Tensor:
    """Ids drawn at random, as many as the longest texts have: int64 ``(B, max_tokens)``."""
    ids_BL = (rng.uniform("text", spec.max_tokens) * len(spec.words)).long()
    pad = spec.id(PAD)
    return ids_BL.where(ids_BL != pad, spec.id(SEP))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The captions of all images of a split.

    Attributes:
        ids_CL: int64, those of each image one after another.
        first_N: int64, where each image's begin.
        count_N: int64, how many it has.
    """

    ids_CL: Tensor
    first_N: Tensor
    count_N: Tensor

    def draw(self, rng: SampleRng) -> Tensor:
        """One caption of each sample, by chance: int64 ``(B, L)``."""
        count_B = self.count_N[rng.samples_B]
        drawn_B = (rng.uniform("caption", 1)[:, 0] * count_B).long()
        return self.ids_CL[self.first_N[rng.samples_B] + drawn_B]

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        return Tokens(*(each.to(device) for each in (self.ids_CL, self.first_N, self.count_N)))


@lru_cache(maxsize=8)
def tokens_of(captions: Sequence[Sequence[str]], spec: TextSpec, device: torch.device) -> Tokens:
    """The tokens of the captions of a split, made once for each vocabulary and device."""
    counts_N = torch.tensor([len(each) for each in captions])
    ids_CL = tokenize([text for each in captions for text in each], spec)
    return Tokens(ids_CL, counts_N.cumsum(0) - counts_N, counts_N).to(device)


class Masked(NamedTuple):
    """Texts with some tokens hidden.

    Attributes:
        ids_BL: int64, what the encoder sees.
        targets_BL: int64, the hidden tokens' own ids, -100 elsewhere.
    """

    ids_BL: Tensor
    targets_BL: Tensor


def mask_tokens(ids_BL: Tensor, spec: TextSpec, rng: SampleRng, share: float) -> Masked:
    """Hide each token with a probability of ``share``, but for [CLS], [SEP] and [PAD].

    Of the hidden ones 80 % become [MASK], 10 % some other word of the vocabulary, and 10 % stay
    (section 3.1).
    """
    special = torch.tensor([spec.id(each) for each in (PAD, CLS, SEP)], device=ids_BL.device)
    length = ids_BL.shape[1]
    drawn = rng.uniforms({"hidden": length, "how": length, "word": length})
    hidden_BL = (drawn["hidden"] < share) & ~torch.isin(ids_BL, special)
    how_BL = drawn["how"]
    words_BL = (drawn["word"] * len(spec.words)).long()
    seen_BL = torch.where(how_BL < 0.8, spec.id(MASK), ids_BL)
    seen_BL = torch.where(how_BL >= 0.9, words_BL, seen_BL)
    return Masked(torch.where(hidden_BL, seen_BL, ids_BL), torch.where(hidden_BL, ids_BL, _IGNORED))


def masked_loss(logits_BLV: Tensor, targets_BL: Tensor, soft_BLV: Tensor | None = None) -> Tensor:
    """The sum of the hidden tokens' cross-entropies, in float32: a scalar.

    Args:
        targets_BL: of `Masked`.
        soft_BLV: probabilities to be predicted instead of the tokens.
    """
    if soft_BLV is None:
        return F.cross_entropy(
            wide(logits_BLV).flatten(0, 1),
            targets_BL.flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )
    each_BL = -(soft_BLV * wide(logits_BLV).log_softmax(dim=-1)).sum(dim=-1)
    return each_BL.where(targets_BL != _IGNORED, 0.0).sum()


def wide(numbers: Tensor) -> Tensor:
    """The same in float32 at least."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def count_hidden(targets_BL: Tensor) -> Tensor:
    """How many tokens are hidden: a float32 scalar."""
    return (targets_BL != _IGNORED).sum().float()


class Attention(nn.Module):
    """Attention of a sequence to itself, or to another one, in several heads."""

    def __init__(self, width: int, num_heads: int, dropout: float, source_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(source_width, width), nn.Linear(source_width, width)
        self.dropout = nn.Dropout(dropout)

    def weights(self, tokens_BLD: Tensor, source_BSD: Tensor, seen_BS: Tensor | None) -> Tensor:
        """How far each token attends to each of the source: ``(B, H, L, S)``, sums of 1."""
        query_BHLK, key_BHSK = (
            self._heads(self.query(tokens_BLD)),
            self._heads(self.key(source_BSD)),
        )
        scores_BHLS = query_BHLK @ key_BHSK.mT / math.sqrt(query_BHLK.shape[-1])
        if seen_BS is not None:
            scores_BHLS = scores_BHLS.masked_fill(~seen_BS[:, None, None], -torch.inf)
        return scores_BHLS.softmax(dim=-1)

    def forward(self, tokens_BLD: Tensor, source_BSD: Tensor, seen_BS: Tensor | None) -> Tensor:
        """What each token takes from the source, all or those that may be seen: ``(B, L, D)``."""
        weights_BHLS = self.dropout(self.weights(tokens_BLD, source_BSD, seen_BS))
        mixed_BHLK = weights_BHLS @ self._heads(self.value(source_BSD))
        return self.out(mixed_BHLK.transpose(1, 2).flatten(2))

    def _heads(self, rows_BLD: Tensor) -> Tensor:
        return rows_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """A layer of BERT, its norms after each sum; with attention to an image between, if wanted."""

    def __init__(self, spec: TextSpec, image_width: int = 0) -> None:
        super().__init__()
        width, how = spec.width, (spec.num_heads, spec.dropout)
        self.attention, self.attention_norm = Attention(width, *how, width), _norm(width)
        if image_width:
            self.cross_attention = Attention(width, *how, image_width)
            self.cross_norm = _norm(width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.dropout = _norm(width), nn.Dropout(spec.dropout)

    def forward(
        self, hidden_BLD: Tensor, seen_BL: Tensor, image_BSD: Tensor | None = None
    ) -> Tensor:
        """The next hidden states; an image's tokens are passed by where there are none."""
        attended = self.attention(hidden_BLD, hidden_BLD, seen_BL)
        hidden_BLD = self.attention_norm(hidden_BLD + self.dropout(attended))
        if image_BSD is not None:
            crossed = self.cross_attention(hidden_BLD, image_BSD, None)
            hidden_BLD = self.cross_norm(hidden_BLD + self.dropout(crossed))
        grown = self.shrink(F.gelu(self.grow(hidden_BLD)))
        return self.norm(hidden_BLD + self.dropout(grown))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-12)


class TextEncoder(nn.Module):
    """BERT's encoder and its head for hidden tokens, whose words are the embedded ones.

    Layers that attend to an image come last, where the spec has some. Weights are from N(0, 0.02),
    biases 0.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        require(
            spec.width % spec.num_heads == 0,
            f"a text encoder of width {spec.width} cannot have {spec.num_heads} heads; "
            f"{math.gcd(spec.width, spec.num_heads)} would work",
        )
        self.spec, self.num_features = spec, spec.width
        self.words = nn.Embedding(len(spec.words), spec.width)
        self.positions = nn.Embedding(spec.max_tokens, spec.width)
        self.norm, self.dropout = _norm(spec.width), nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.depth))
        self.fusion = nn.ModuleList(Layer(spec, spec.image_width) for _ in range(spec.fusion_depth))
        self.transform, self.transform_norm = nn.Linear(spec.width, spec.width), _norm(spec.width)
        self.bias = nn.Parameter(torch.zeros(len(spec.words)))
        self.apply(_initialise)

    def seen(self, ids_BL: Tensor) -> Tensor:
        """Which tokens are more than padding: bool ``(B, L)``."""
        return ids_BL != self.spec.id(PAD)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """The hidden states of texts after the layers that read text alone: ``(B, L, D)``."""
        hidden_BLD = self.words(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        hidden_BLD = self.dropout(self.norm(hidden_BLD))
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, self.seen(ids_BL))
        return hidden_BLD

    def fuse(self, hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
        """Those hidden states after the layers that attend to an image's tokens: ``(B, L, D)``."""
        for layer in self.fusion:
            hidden_BLD = layer(hidden_BLD, self.seen(ids_BL), image_BSD)
        return hidden_BLD

    def predict(self, hidden_BLD: Tensor) -> Tensor:
        """Logits of the words at each token: ``(B, L, V)``."""
        transformed_BLD = self.transform_norm(F.gelu(self.transform(hidden_BLD)))
        return F.linear(transformed_BLD, self.words.weight, self.bias)

    def pool(self, hidden_BLD: Tensor, ids_BL: Tensor) -> dict[str, Tensor]:
        """A vector of each text: ``avg``, its tokens' mean, and ``cls``; float32 ``(B, D)``."""
        hidden_BLD, seen_BL1 = wide(hidden_BLD), self.seen(ids_BL)[..., None]
        mean_BD = (hidden_BLD * seen_BL1).sum(dim=1) / seen_BL1.sum(dim=1)
        return {"avg": mean_BD, "cls": hidden_BLD[:, 0]}


def attended(encoder: TextEncoder, hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
    """How far [CLS] attends to each token of an image, in the last layer: ``(B, S)``, sums of 1.

    The mean over the heads.

    Args:
        hidden_BLD: of the encoder's layers that read text alone.
    """
    seen_BL = encoder.seen(ids_BL)
    for layer in encoder.fusion[:-1]:
        hidden_BLD = layer(hidden_BLD, seen_BL, image_BSD)
    last: Any = encoder.fusion[-1]
    own_BLD = last.attention(hidden_BLD, hidden_BLD, seen_BL)
    query_BLD = last.attention_norm(hidden_BLD + own_BLD)
    return last.cross_attention.weights(query_BLD[:, :1], image_BSD, None).mean(dim=1)[:, 0]


class ImageText(nn.Module):
    """What belongs to an image encoder that was pre-trained with captions.

    Attributes:
        text: reads captions, alone and beside an image.
        image_proj, text_proj: from class tokens to the space that images and texts are compared in.
        match: from a fused [CLS] to logits that its text and its image belong together.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.text = TextEncoder(spec)
        if spec.embed_dim:
            self.image_proj = nn.Linear(spec.image_width, spec.embed_dim)
            self.text_proj = nn.Linear(spec.width, spec.embed_dim)
        if spec.matches:
            self.match = nn.Linear(spec.width, 2)

    def embed_images(self, class_token_BD: Tensor) -> Tensor:
        """Where images are in the common space: float32 ``(B, embed_dim)`` of length 1."""
        return F.normalize(wide(self.image_proj(class_token_BD)), dim=1)

    def embed_texts(self, hidden_BLD: Tensor) -> Tensor:
        """Where texts are, of their hidden states: float32 ``(B, embed_dim)`` of length 1."""
        return F.normalize(wide(self.text_proj(hidden_BLD[:, 0])), dim=1)

    def matching(self, hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
        """Logits that a text and an image do not belong together, and that they do: ``(B, 2)``."""
        return wide(self.match(self.text.fuse(hidden_BLD, ids_BL, image_BSD)[:, 0]))


def why_no_pair(pair: ImageText | None) -> str | None:
    """Why images and texts cannot be compared, or None where they can."""
    if pair is None:
        return "it compares images with texts, and the encoder was not pre-trained with captions"
    if not pair.text.spec.embed_dim:
        return "it compares images with texts, which no loss of the pre-training did"
    return None


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
