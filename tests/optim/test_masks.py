from lm.optim.masks import decay_mask, kind_mask


def test_only_matrices_decay(leaves):
    mask = decay_mask(leaves)
    assert mask == {
        "table": False,
        "places": False,
        "query": True,
        "scale": False,
        "head": {"w": True, "bias": False},
    }


def test_token_tables_decay_when_asked_and_positions_still_do_not(leaves):
    mask = decay_mask(leaves, tables=True)
    assert mask["table"]
    assert not mask["places"]
    assert not mask["scale"]
    assert not mask["head"]["bias"]


def test_kinds_partition_the_tree(leaves):
    masks = [kind_mask(leaves, {k}) for k in ("matrix", "table", "position", "norm", "bias")]
    for path in (("table",), ("places",), ("query",), ("scale",), ("head", "w"), ("head", "bias")):
        chosen = 0
        for mask in masks:
            for name in path:
                mask = mask[name]
            chosen += mask
        assert chosen == 1
