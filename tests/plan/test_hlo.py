"""The text of a scheduled program is read as XLA prints it."""

import pytest

from lm.plan.hlo import bytes_of, parse, trip_count

LOOPS = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0:T(128)})->f32[8]{0}}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  ROOT %t = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(128)}) tuple(%a, %b), metadata={op_name="x(y)"}
}

%compared (p.1: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%within (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt.1 = pred[] compare(%a, %b), direction=LT
}

%fused (p.2: (s32[], f32[8])) -> pred[] {
  %limit.1 = s32[] constant(7)
  %unrelated = s32[] constant(99)
  %p.2 = (s32[], f32[8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.2), index=0
  ROOT %done = pred[] fusion(%i.1, %limit.1), kind=kLoop, calls=%within
}

%unbounded (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[], f32[8]) parameter(0)
  ROOT %flag = pred[] get-tuple-element(%p.3), index=1
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %known = (s32[], f32[8]) while(%x), condition=%unbounded, body=%body, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  %plain = (s32[], f32[8]) while(%x), condition=%compared, body=%body
  %hidden = (s32[], f32[8]) while(%x), condition=%fused, body=%body
  ROOT %endless = (s32[], f32[8]) while(%x), condition=%unbounded, body=%body
}
"""  # noqa: E501


def test_a_loop_runs_as_often_as_the_compiler_or_its_condition_says():
    module = parse(LOOPS)
    trips = {i.name: trip_count(module, i) for i in module.of("main") if i.opcode == "while"}
    assert trips == {"known": 5, "plain": 12, "hidden": 7, "endless": None}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[80,64]{1,0:T(8,128)S(1)}", 80 * 64 * 4),
        ("bf16[]{:T(256)}", 2),
        ("(bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=1*/s32[2]{0:S(4)}, token[])", 64 + 8),
        ("((f32[2]{0}, f32[4]{0}), u8[<=16]{0})", 8 + 16 + 16),
        ("f8e4m3fn[32]{0}", 32),
    ],
)
def test_a_shape_weighs_what_its_arrays_do(shape, size):
    assert bytes_of(shape) == size


def test_an_instruction_is_taken_apart():
    module = parse(LOOPS)
    last = module.of("body")[-1]
    assert (last.name, last.opcode, last.root) == ("t", "tuple", True)
    assert last.operands == ("a", "b")
    assert last.bytes == 4 + 32
    assert module.of("fused")[-1].called() == ("within",)


def test_text_without_a_program_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule nothing\n")
