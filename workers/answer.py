"""What becomes of a generated token: text that may go out, or the end of the answer."""

from __future__ import annotations

from workers.binding import Model
from workers.metrics import Counters
from workers.sequence import End, Failed, Finished, Sequence, Timings


def take_token(
    sequence: Sequence, token: int, model: Model, counters: Counters, now: float
) -> tuple[str, End | None]:
    """Adds `token` to the answer. What may be sent now, and the end if this is it.

    What is not streamed is collected, and comes whole with the end.
    """
    sampler = sequence.sampler
    if sampler is not None and sampler.failure:
        counters.requests["failed"] += 1
        return "", Failed(sampler.failure, 400)
    if not sequence.first_token:
        sequence.first_token = sequence.last_token = now
        if sequence.limit == 0:
            return "", _end(sequence, "length", counters, now)
    elif not sequence.unplayed:
        counters.between_tokens.observe(now - sequence.last_token)
        sequence.last_token = now
    if sequence.unplayed:
        sequence.unplayed -= 1
    else:
        sequence.tokens.append(token)
        counters.predicted_tokens += 1
    piece = model.piece(token)
    if piece is None:
        return _all(sequence, sequence.output.rest()), _end(sequence, "stop", counters, now)
    text = sequence.output.push(piece)
    if sequence.output.stopped:
        return _all(sequence, text), _end(sequence, "stop", counters, now)
    if sequence.generated >= sequence.limit:
        rest = sequence.output.rest()
        return _all(sequence, text + rest), _end(sequence, "length", counters, now)
    if text and not sequence.streaming:
        sequence.text.append(text)
        text = ""
    return text, None


def _all(sequence: Sequence, text: str) -> str:
    return "".join(sequence.text) + text


def _end(sequence: Sequence, reason: str, counters: Counters, now: float) -> Finished:
    timings = Timings(
        prompt_tokens=sequence.prompt_length,
        cached_tokens=min(sequence.reused, sequence.prompt_length),
        prompt_seconds=sequence.first_token - sequence.started,
        predicted_tokens=sequence.generated,
        predicted_seconds=now - sequence.first_token,
        guessed=sequence.draft.guessed,
        right=sequence.draft.right,
    )
    counters.requests[reason] += 1
    counters.finished(timings, sequence.arrived, sequence.first_token)
    counters.longest = max(counters.longest, len(sequence.tokens))
    return Finished(reason, timings)
