"""Layout of a conversation as one sequence of tokens: which tokens the loss counts, and which are cut if too long."""

from __future__ import annotations

from dataclasses import dataclass

from ifloo.data.multimodal.row import MARKER, BadRowError, Row
from ifloo.data.multimodal.tokenizer import Tokenizer

NO_LOSS = -100


@dataclass(frozen=True)
class TokenRow:
    """One row as the model reads it.

    Attributes:
        input_ids: Token ids, at most `max_seq_len`.
        labels: Token ids where the loss counts them (answers and their end tokens), else -100.
        cut: Whether text was cut to make the row fit.
    """

    input_ids: list[int]
    labels: list[int]
    cut: bool

    @property
    def answer_positions(self) -> list[int]:
        """Positions whose next token is counted by the loss."""
        return [k - 1 for k, label in enumerate(self.labels) if label != NO_LOSS]


@dataclass
class _Piece:
    """Tokens that are kept or cut together.

    Attributes:
        tokens: Tokens that remain.
        answer: Whether the loss counts the tokens.
        turn: Position of the turn.
        order: Order of cutting: pieces of lower order are cut first, pieces of order 0 are never cut.
        keep: Number of tokens that must remain.
    """

    tokens: list[int]
    turn: int
    answer: bool = False
    order: int = 0
    keep: int = 0

    def spare(self) -> int:
        return len(self.tokens) - self.keep if self.order else 0


USER_TEXT, SYSTEM_TEXT, EARLIER_ANSWER, LAST_ANSWER = 1, 2, 3, 4


def lay_out(row: Row, tokenizer: Tokenizer, num_image_tokens: int, max_seq_len: int) -> TokenRow:
    """Lays out a row: BOS, then for each turn its role token, its text with image tokens, and EOS after an answer.

    Rows that are too long lose text in this order: the user's oldest turns, the system's turns, earlier answers (all
    from their beginning; an answer that was cut is no longer trained on), and last the end of the last answer, of which
    at least the first token remains. Images are never cut.

    Raises:
        BadRowError: If the parts that must not be cut do not fit, or an answer has no token.
    """
    pieces = [_Piece([tokenizer.bos], turn=-1)]
    for position in range(len(row.turns)):
        pieces += _turn(row, position, tokenizer, num_image_tokens)
    excess = sum(len(piece.tokens) for piece in pieces) - max_seq_len
    if excess > 0:
        _cut(pieces, excess, len(row.images) * num_image_tokens, max_seq_len)
    input_ids: list[int] = []
    labels: list[int] = []
    for piece in pieces:
        input_ids += piece.tokens
        labels += piece.tokens if piece.answer else [NO_LOSS] * len(piece.tokens)
    return TokenRow(input_ids, labels, excess > 0)


def _turn(row: Row, position: int, tokenizer: Tokenizer, num_image_tokens: int) -> list[_Piece]:
    turn = row.turns[position]
    marks = {"user": tokenizer.user, "assistant": tokenizer.assistant, "system": tokenizer.system}
    pieces = [_Piece([marks[turn.role]], position)]
    if turn.role == "assistant":
        tokens = tokenizer.encode(turn.text)
        if not tokens:
            raise BadRowError(f"turn {position + 1}: expected an answer, found one without a token")
        order = LAST_ANSWER if position == row.last_answer else EARLIER_ANSWER
        return [*pieces, _Piece([*tokens, tokenizer.eos], position, answer=True, order=order, keep=1)]
    order = USER_TEXT if turn.role == "user" else SYSTEM_TEXT
    for k, text in enumerate(turn.text.split(MARKER)):
        if k:
            pieces.append(_Piece([tokenizer.image] * num_image_tokens, position))
        pieces.append(_Piece(tokenizer.encode(text), position, order=order))
    return pieces


def _cut(pieces: list[_Piece], excess: int, image_tokens: int, max_seq_len: int) -> None:
    spare = sum(piece.spare() for piece in pieces)
    if spare < excess:
        needed = max_seq_len + excess - spare
        raise BadRowError(
            f"expected a row that fits into max_seq_len {max_seq_len}, found {needed} tokens that cannot be cut, "
            f"{image_tokens} of them for images",
            f"Raise max_seq_len to {needed} or more, or lower num_image_tokens",
        )
    for piece in sorted(pieces, key=lambda piece: (piece.order, piece.turn)):
        taken = min(piece.spare(), excess)
        if taken <= 0:
            continue
        if piece.order == LAST_ANSWER:
            piece.tokens = piece.tokens[:-taken]
        else:
            piece.tokens, piece.answer = piece.tokens[taken:], False
        excess -= taken
