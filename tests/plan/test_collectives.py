"""What travels is counted by what the compiler emits, once, and as often as it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.plan.collectives import collectives, replica_groups, rows
from lm.plan.hlo import parse

GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7}}"


def test_groups_are_read_in_every_form():
    """The same eight devices in four pairs that are four apart."""
    wanted = [[0, 4], [1, 5], [2, 6], [3, 7]]
    forms = (
        "replica_groups={{0,4},{1,5},{2,6},{3,7}}, x=1",
        "replica_groups=[4,2]<=[2,4]T(1,0), x={}",
        "replica_groups=mesh['a'=2,'b'=4] {'a'}, x={}",
        "replica_groups=mesh['c'=8] {'c':(1)2}, x={}",
    )
    for form in forms:
        found = replica_groups(form, 8)
        assert found is not None
        assert sorted(sorted(g) for g in found.tolist()) == wanted, form
    assert replica_groups("replica_groups={}", 4).tolist() == [[0, 1, 2, 3]]
    assert replica_groups("replica_groups=[2,4]<=[8]", 8).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert replica_groups("dimensions={0}", 8) is None


def entry(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    head = "HloModule m, is_scheduled=true"
    return f"{head}\n\n{before}\nENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.fixture
def mesh(tools):
    return tools.fake_mesh({"slices": 1, "data": 2, "fsdp_x": 2, "fsdp_y": 2, "tensor": 1})


def user(axis):
    return axis.partition("_")[0]


def test_axes_are_the_users_and_parts_of_one_axis_are_one_row(mesh):
    text = entry(
        "%x = f32[1024]{0} parameter(0)",
        "%a = f32[2048]{0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}",
        "%b = f32[2048]{0} all-gather(%x), replica_groups={{0,2},{1,3},{4,6},{5,7}}",
        "%c = f32[1024]{0} all-reduce(%x), replica_groups=mesh['data'=2,'fsdp_x'=2,'fsdp_y'=2] "
        "{'data','fsdp_x'}, to_apply=%add",
        "%d = f32[1024]{0} collective-permute(%x), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}",
    )
    found = {(r.kind, r.axes): r for r in rows(collectives(parse(text), mesh).traffic, user)}
    gather = found["all-gather", ("fsdp",)]
    assert gather.count_per_step == 2
    assert gather.wire_gib_per_step * 2**30 == 2 * 8192 / 2
    assert found["all-reduce", ("data", "fsdp")].wire_gib_per_step * 2**30 == 2 * 4096 * 3 / 4
    assert found["collective-permute", ("data",)].wire_gib_per_step * 2**30 == 4096
    assert len(found) == 3


def test_groups_that_are_no_whole_axis_are_named_by_the_axis_they_lie_in(tools):
    mesh = tools.fake_mesh({"data": 2, "fsdp": 4})
    text = entry(
        "%x = f32[8]{0} parameter(0)",
        "%a = f32[16]{0} all-gather(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}",
    )
    assert collectives(parse(text), mesh).traffic[0].axes == ("fsdp",)


SCATTER = """\
%scattered (input: f32[100,8]) -> f32[26,8] {
  %input = f32[100,8]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %padded = f32[104,8]{1,0} pad(%input, %zero), padding=0_4x0_0
  %inner = f32[104,8]{1,0} all-reduce(%padded), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %own = f32[26,8]{1,0} dynamic-slice(%inner, %zero, %zero), dynamic_slice_sizes={26,8}
}
"""


@pytest.mark.parametrize(
    ("emitter", "kind", "times"),
    [
        ("SingleInputAllReduceScatterFusion", "reduce-scatter", 1),
        ("RotatedPincerEmitter", "all-reduce", 2),
    ],
)
def test_a_fused_all_reduce_is_what_its_emitter_sends(tools, emitter, kind, times):
    """A padded reduce-scatter is none; a full all-reduce with a slice after it is one."""
    config = (
        f'backend_config={{"collective_algorithm_config":{{"emitter":"{emitter}","debug":""}}}}'
    )
    text = entry(
        "%x = f32[100,8]{1,0} parameter(0)",
        f"%f = f32[26,8]{{1,0}} fusion(%x), kind=kCustom, calls=%scattered, {config}",
        before=SCATTER,
    )
    found = collectives(parse(text), tools.fake_mesh({"data": 2, "fsdp": 4})).traffic
    assert [(t.kind, t.axes) for t in found] == [(kind, ("fsdp",))]
    assert found[0].whole_bytes == 104 * 8 * 4
    assert found[0].wire_bytes == times * 104 * 8 * 4 * 3 / 4


ASYNC = """\
%started (p0: bf16[16,8]) -> (bf16[16,8], bf16[64,8], u32[]) {
  %p0 = bf16[16,8]{1,0} parameter(0)
  %g0 = bf16[64,8]{1,0} all-gather(%p0), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %c0 = (bf16[16,8]{1,0}, bf16[64,8]{1,0}, u32[]) custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}

%carried (p1: bf16[16,8], p2: bf16[64,8], p3: f32[8,8]) -> (bf16[64,8], f32[8,8]) {
  %p1 = bf16[16,8]{1,0} parameter(0)
  %p2 = bf16[64,8]{1,0} parameter(1)
  %p3 = f32[8,8]{1,0} parameter(2)
  %g1 = bf16[64,8]{1,0} all-gather(%p1), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  COMPUTE
  ROOT %t1 = (bf16[64,8]{1,0}, f32[8,8]{1,0}) tuple(%p2, %d1)
}

%ended (p4: bf16[16,8], p5: bf16[64,8]) -> bf16[64,8] {
  %p4 = bf16[16,8]{1,0} parameter(0)
  %p5 = bf16[64,8]{1,0} parameter(1)
  %g2 = bf16[64,8]{1,0} all-gather(%p4), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %c2 = bf16[64,8]{1,0} custom-call(%p4, %p5, %g2), custom_call_target="AsyncCollectiveDone"
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("compute", "overlapped"),
    [
        ("%d1 = f32[8,8]{1,0} dot(%p3, %p3), lhs_contracting_dims={1}", True),
        ("%d1 = f32[8,8]{1,0} copy(%p3)", False),
    ],
)
def test_a_collective_carried_through_fusions_counts_once(tools, compute, overlapped):
    """Start, continuation and end each repeat it; what overlaps it is real compute only."""
    text = entry(
        "%x = bf16[16,8]{1,0} parameter(0)",
        "%y = f32[8,8]{1,0} parameter(1)",
        "%s = (bf16[16,8]{1,0}, bf16[64,8]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%started",
        "%s0 = bf16[16,8]{1,0} get-tuple-element(%s), index=0",
        "%s1 = bf16[64,8]{1,0} get-tuple-element(%s), index=1",
        "%m = (bf16[64,8]{1,0}, f32[8,8]{1,0}) fusion(%s0, %s1, %y), kind=kOutput, calls=%carried",
        "%m0 = bf16[64,8]{1,0} get-tuple-element(%m), index=0",
        "%e = bf16[64,8]{1,0} fusion(%s0, %m0), kind=kCustom, calls=%ended",
        "%after = f32[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={1}",
        before=ASYNC.replace("COMPUTE", compute),
    )
    (found,) = collectives(parse(text), tools.fake_mesh({"data": 2, "fsdp": 4})).traffic
    assert (found.kind, found.axes, found.runs) == ("all-gather", ("fsdp",), 1)
    assert found.wire_bytes == 64 * 8 * 2 * 3 / 4
    assert found.overlapped is overlapped


@pytest.mark.parametrize("between", [True, False])
def test_start_and_done_are_one_collective_that_overlaps_what_stands_between(tools, between):
    product = "%d = f32[64,64]{1,0} dot(%y, %y), lhs_contracting_dims={1}"
    lines = [
        "%x = f32[16]{0} parameter(0)",
        "%y = f32[64,64]{1,0} parameter(1)",
        f"%s = (f32[16]{{0}}, f32[64]{{0}}) all-gather-start(%x), {GROUPS}, dimensions={{0}}",
        "%e = f32[64]{0} all-gather-done(%s)",
    ]
    lines.insert(3 if between else 4, product)
    (found,) = collectives(parse(entry(*lines)), tools.fake_mesh({"data": 2, "fsdp": 4})).traffic
    assert found.kind == "all-gather"
    assert found.wire_bytes == 64 * 4 * 3 / 4
    assert found.overlapped is between


def test_what_goes_between_slices_is_found_in_the_hosts_transfers(tools):
    """Groups within a slice number its own devices."""
    way = (
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="psum_0",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = entry(
        "%x = f32[256]{0} parameter(0)",
        "%r = f32[64]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
        f"%s = (f32[64]{{0}}, u32[], token[]) send(%r, %t), channel_id=2, {way}",
        f"%v = (f32[64]{{0}}, u32[], token[]) recv(%t), channel_id=1, {way}",
        "%d = token[] send-done(%s), channel_id=2",
        "%w = (f32[64]{0}, token[]) recv-done(%v), channel_id=1",
    )
    mesh = tools.fake_mesh({"slices": 2, "fsdp": 4}, slices=2)
    scatter, between = collectives(parse(text), mesh).traffic
    assert scatter.axes == ("fsdp",)
    assert (between.kind, between.axes) == ("all-reduce", ("slices",))
    assert between.wire_bytes == 2 * 256 / 2


OTHER_CORE = """\
%offloaded (p: f32[4,8]) -> f32[16,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %g = f32[16,8]{1,0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}, execution_thread="sparsecore"
"""


@pytest.mark.parametrize("before", [True, False])
def test_a_collective_that_another_core_runs_starts_when_it_is_given_its_operands(tools, before):
    """tpu7x prepares a call, hands the operands over later, and waits for the end."""
    lines = [
        "%x = f32[4,8]{1,0} parameter(0)",
        "%y = f32[64,64]{1,0} parameter(1)",
        '%s = ((), (), s32[]) call-start(), async_execution_thread="sparsecore", '
        "to_apply=%offloaded",
        "%u = ((f32[4,8]{1,0}), f32[16,8]{1,0}, s32[]) call-update(%s, %x)",
        "%e = f32[16,8]{1,0} call-done(%u)",
    ]
    product = "%d = f32[64,64]{1,0} dot(%y, %y), lhs_contracting_dims={1}"
    lines.insert(3 if before else 4, product)
    text = entry(*lines, before=OTHER_CORE)
    found = collectives(parse(text), tools.fake_mesh({"data": 2, "fsdp": 4}))
    (gather,) = found.traffic
    assert (gather.kind, gather.axes) == ("all-gather", ("fsdp",))
    assert gather.overlapped is not before
    assert found.unread == 0


def test_a_collective_in_a_place_that_is_not_understood_is_told(tools):
    text = entry("%x = f32[4,8]{1,0} parameter(0)", before=OTHER_CORE)
    found = collectives(parse(text), tools.fake_mesh({"data": 2, "fsdp": 4}))
    assert (found.traffic, found.unread) == ((), 1)


LOOP = """\
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%p), index=1
  %r = f32[8]{0} all-reduce(%v), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %r)
}

%more (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  ROOT %flag = pred[] get-tuple-element(%q), index=1
}
"""


def test_a_loop_of_unknown_length_is_counted_once_and_told(tools):
    text = entry(
        "%x = (s32[], f32[8]{0}) parameter(0)",
        "%w = (s32[], f32[8]{0}) while(%x), condition=%more, body=%body",
        before=LOOP,
    )
    found = collectives(parse(text), tools.fake_mesh({"data": 2, "fsdp": 4}))
    assert found.unknown_loops == 1
    assert [t.runs for t in found.traffic] == [1]


LAYERS, WIDTH, WAYS = 5, 64, 4


def fsdp_step(mesh, *, planted: bool):
    """A scanned stack of products; its weights gathered in both passes, or all-reduced whole."""

    def loss(w, x):
        def body(x, shard):
            whole = shard if planted else lax.all_gather(shard, "fsdp", axis=0, tiled=True)
            return jnp.tanh(x @ whole), None

        return lax.scan(jax.checkpoint(body, prevent_cse=False), x, w)[0].sum()

    def step(w, x):
        found = jax.grad(loss)(w, x)
        return lax.psum(found, ("data", "fsdp") if planted else "data")

    where = P() if planted else P(None, "fsdp")
    run = jax.shard_map(
        step, mesh=mesh, in_specs=(where, P(("data", "fsdp"))), out_specs=where, check_vma=False
    )
    shape = jax.ShapeDtypeStruct
    w = shape((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, where))
    x = shape((64, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    text = jax.jit(run).lower(w, x).compile().as_text()
    found = rows(collectives(parse(text), mesh).traffic, user)
    return {(r.kind, r.axes): r for r in found}


@pytest.fixture(scope="module")
def real_mesh():
    return jax.make_mesh((2, WAYS), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_wire_bytes_of_a_compiled_fsdp_step_are_those_of_its_leaf_shapes(real_mesh):
    """Each layer is gathered in both passes and scattered once: trips times (n - 1) / n of it."""
    found = fsdp_step(real_mesh, planted=False)
    layer = WIDTH * WIDTH * 4
    gather, scatter = found["all-gather", ("fsdp",)], found["reduce-scatter", ("fsdp",)]
    share = (WAYS - 1) / WAYS
    assert gather.count_per_step == 2 * LAYERS
    assert gather.wire_gib_per_step * 2**30 == pytest.approx(2 * LAYERS * layer * share)
    assert scatter.count_per_step == LAYERS
    assert scatter.wire_gib_per_step * 2**30 == pytest.approx(LAYERS * layer * share)
    across = found["all-reduce", ("data",)]
    assert across.wire_gib_per_step * 2**30 == pytest.approx(2 * LAYERS * layer / WAYS / 2)


def test_a_planted_full_size_all_reduce_is_shown_as_one(real_mesh):
    found = fsdp_step(real_mesh, planted=True)
    (row,) = found.values()
    assert (row.kind, row.axes) == ("all-reduce", ("data", "fsdp"))
    whole = LAYERS * WIDTH * WIDTH * 4
    assert row.largest_gib * 2**30 == pytest.approx(whole)
    assert row.wire_gib_per_step * 2**30 == pytest.approx(2 * whole * 7 / 8)


def test_a_permutation_is_along_the_axes_that_differ(tools):
    mesh = tools.fake_mesh({"data": 2, "fsdp": 4})
    ring = ",".join(f"{{{i},{i // 4 * 4 + (i + 1) % 4}}}" for i in range(8))
    text = entry(
        "%x = f32[16]{0} parameter(0)",
        f"%p = f32[16]{{0}} collective-permute(%x), source_target_pairs={{{ring}}}",
    )
    (found,) = collectives(parse(text), mesh).traffic
    assert found.axes == ("fsdp",)
    assert np.isclose(found.wire_bytes, 64)
