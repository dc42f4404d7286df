"""Conversations in ChatML, `<|im_start|>role ... <|im_end|>`, which all families here speak.

Invariant: append-only. A conversation is a prompt segment, then turns of the model and observation
segments in turn; rendering a later turn never changes an earlier token. No text of users, tools or
models can speak in special tokens.

Left out on purpose: pictures, of which a family says what stands for them. The shipped chat
templates are not used, since they drop tools and tool calls; ours writes the same tokens for plain
conversations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from tokenizers import Tokenizer

from saccade.dialects.notations import Notation
from saccade.errors import RecipeError
from saccade.types import ImageRef, ImageShown, Message, Part, Segment, Text

__all__ = ["IM_END", "IM_START", "ChatMl"]

IM_END = "<|im_end|>"
IM_START = "<|im_start|>"


class ChatMl(ABC):
    """The text of a renderer. A family adds its pictures."""

    deviations: ClassVar[tuple[str, ...]] = (
        "Tools are described in the system message by the dialect; the shipped template ignores "
        "them.",
        "Tool results are user turns written by the dialect; the shipped template writes the role "
        "literally.",
    )
    family: ClassVar[str]
    """Its name, for messages."""
    specials: ClassVar[tuple[str, ...]]
    """Texts of special tokens, which no text may contain."""

    def __init__(self, tokenizer: Tokenizer, *, notation: Notation, pad: str) -> None:
        self.tokenizer = tokenizer
        self.notation = notation
        self.end_id = self._special(IM_END)
        self.pad_id = self._special(pad)
        self.stop_ids = frozenset({self.end_id})

    @abstractmethod
    def image_text(self, image: ImageRef) -> str:
        """What stands in a message for a picture."""

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """System and user messages, and the header of the model's first turn."""
        pieces: list[str] = []
        images: list[ImageRef] = []
        for message in messages:
            body, shown = self._body(message)
            pieces.append(f"{IM_START}{message.role}\n{body}{IM_END}\n")
            images += shown
        pieces.append(f"{IM_START}assistant\n")
        return Segment("prompt", self._encode("".join(pieces)), images=tuple(images))

    def observation(self, message: Message) -> Segment:
        """What stands between the end of one turn of the model and the start of the next."""
        body, shown = self._body(message)
        text = f"\n{IM_START}user\n{body}{IM_END}\n{IM_START}assistant\n"
        return Segment("observation", self._encode(text), images=tuple(shown))

    def demonstrated(self, text: str) -> Segment:
        """A turn that nobody sampled, with its end: trained by SFT, refused by RL."""
        return Segment("demonstrated", (*self._encode_plain(text), self.end_id))

    def begun(self, text: str) -> Segment:
        """The beginning of a turn of the model that somebody else wrote: not trained."""
        return Segment("prompt", self._encode_plain(text))

    def encode_user_image(self, image: ImageRef) -> Segment:
        """The start of a user turn that shows an image: what several questions about it share."""
        body, shown = self._body(Message("user", (ImageShown(image, ""),)))
        return Segment("prompt", self._encode(f"{IM_START}user\n{body}"), images=tuple(shown))

    def encode_user_rest(self, parts: Sequence[Part]) -> Segment:
        """The rest of such a turn, up to the model's header."""
        body, shown = self._body(Message("user", tuple(parts)))
        ids = self._encode(f"{body}{IM_END}\n{IM_START}assistant\n")
        return Segment("prompt", ids, images=tuple(shown))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn, without its end. Broken UTF-8 becomes U+FFFD."""
        kept = [i for i in ids if i not in self.stop_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Special ids that the model may not emit: everything special but the end of a turn and
        what its boxes are written with.
        """
        added = self.tokenizer.get_added_tokens_decoder()
        free = {IM_END, *self.notation.specials}
        return tuple(sorted(i for i, t in added.items() if t.special and t.content not in free))

    def never_sampled(self, logits: int) -> list[int]:
        """Ids among that many logits that may not be drawn: the suppressed ones, and those that the
        tokenizer has no token for.
        """
        return sorted({*self.suppressed_ids, *range(self.vocabulary, logits)})

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def _special(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise RecipeError(
                f"The tokenizer has no {token} token; this is no {self.family} tokenizer."
            )
        return int(found)

    def _body(self, message: Message) -> tuple[str, list[ImageRef]]:
        # what the system says is ours, and shows how boxes are written
        free = self.notation.specials if message.role == "system" else ()
        pieces: list[str] = []
        images: list[ImageRef] = []
        for part in message.parts:
            if isinstance(part, Text):
                pieces.append(self._defused(part.text, but=free))
            elif isinstance(part, ImageShown):
                pieces.append(self.image_text(part.image))
                images.append(part.image)
            else:
                raise TypeError(
                    f"A {type(part).__name__} has no rendering; dialects turn it into text."
                )
        return "".join(pieces), images

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(_encodable(text), add_special_tokens=False).ids)

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return self._encode(self._defused(text, but=self.notation.specials))

    def _defused(self, text: str, *, but: Sequence[str] = ()) -> str:
        """Text of users and tools can't speak in special tokens: a zero-width space breaks them."""
        if "<" not in text:
            return text
        for special in self.specials:
            if special not in but:
                text = text.replace(special, special[:2] + "\u200b" + special[2:])
        return text


def _encodable(text: str) -> str:
    """Lone surrogates can't be UTF-8; they become U+FFFD."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
