"""Headers that a proxy must not forward."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from swapd.proxy.forward import HOP_BY_HOP, end_to_end


@given(
    st.lists(st.tuples(st.sampled_from([*HOP_BY_HOP, "Accept", "X-A", "X-B"]), st.just("v"))),
    st.lists(st.sampled_from(["X-A", "close", "x-b"])),
)
def test_hop_by_hop_headers_are_not_forwarded(
    pairs: list[tuple[str, str]], named: list[str]
) -> None:
    headers = CIMultiDict([*pairs, ("Connection", ", ".join(named))])
    forwarded = {name.lower() for name in end_to_end(CIMultiDictProxy(headers))}
    assert not forwarded & (HOP_BY_HOP | {n.lower() for n in named})
    assert ("accept" in forwarded) == any(name == "Accept" for name, _ in pairs)
