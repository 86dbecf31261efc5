"""Bytes that chips send, read from programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from srum_jax.planning import hlo

N = 8
TPU = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[8,128]{1,0:T(8,128)(2,1)})}

%sum.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(f32[]{:T(128)} %x, f32[]{:T(128)} %y)
}

%body.2 (arg: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %arg = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %ag-start = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%gte), channel_id=1, replica_groups=[4,4]<=[16], dimensions={0}
  %ag-done = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag-start)
  %rs = f32[8,128]{1,0} reduce-scatter(f32[32,128]{1,0} %big), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum.1
  ROOT %out = (s32[], bf16[8,128]) tuple(%gte, %gte)
}

%fused.3 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %ar = f32[4]{0} all-reduce(%p), replica_groups=[1,2]<=[2], to_apply=%sum.1
}

%done.5 (limit: (s32[], bf16[8,128])) -> pred[] {
  %five = s32[]{:T(128)} constant(5), metadata={op_name="x"}
  %limit = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%limit), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT
}

%begun.6 (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %ag.1 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
}

%ended.7 (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %ag.2 = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
}

%spread.8 (arg: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %arg = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %begin = (bf16[8,128]{1,0}, bf16[32,128]{1,0}, u32[]{:S(2)}) fusion(%arg), kind=kCustom, calls=%begun.6
  %end = bf16[32,128]{1,0} fusion(%begin), kind=kCustom, calls=%ended.7
  ROOT %out = (s32[], bf16[8,128]) tuple(%gte, %gte)
}

%piece.9 (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %ag.3 = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=9, replica_groups=[4,4]<=[16], dimensions={0}
}

%less.10 (p: (bf16[8,128], u32[])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8), metadata={op_name="x"}
  %p = (bf16[8,128]{1,0}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %eight), direction=LT
}

%window.11 (p: (bf16[8,128], u32[])) -> (bf16[8,128], u32[]) {
  %one = u32[]{:T(128)} constant(1)
  %two = u32[]{:T(128)} constant(2)
  %p = (bf16[8,128]{1,0}, u32[]{:T(128)}) parameter(0)
  %x = bf16[8,128]{1,0} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %odd = u32[]{:T(128)S(6)} add(%i, %one), metadata={op_name="jit(step)/dot_general"}
  %next = u32[]{:T(128)} add(%i, %two), metadata={op_name="jit(step)/dot_general"}
  %meanwhile = bf16[32,128]{1,0} fusion(%x), kind=kCustom, calls=%piece.9
  %move.1 = bf16[2,128]{1,0} collective-permute(%x), channel_id=11, source_target_pairs={{0,1},{1,0}}
  ROOT %out = (bf16[8,128]{1,0}, u32[]{:T(128)}) tuple(%x, %next)
}

ENTRY %main.4 (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[16,1]<=[16]}
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) while(%t), condition=%c, body=%body.2, backend_config={"known_trip_count":{"n":"28"},"flag_configs":[]}
  %fives = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) while(%t), condition=%done.5, body=%spread.8, metadata={op_name="jit(step)/while"}
  %before = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%piece.9
  %windows = (bf16[8,128]{1,0}, u32[]{:T(128)}) while(%t), condition=%less.10, body=%window.11
  %one = f32[4]{0} fusion(%q), kind=kCustom, calls=%fused.3
  %two = f32[4]{0} fusion(%one), kind=kCustom, calls=%fused.3
  %mixed = bf16[32,128]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  ROOT %move = bf16[8,128]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_the_text_of_a_tpu_program():
    assert hlo.collectives(TPU) == {
        # One is begun before a loop of 4 turns, in whose turns it goes on: once.
        "all-gather": (28 + 1 + 1) * (32 * 128 * 2) * 3 / 4 + 5 * (32 * 128 * 2) * 7 / 8,
        "reduce-scatter": 28 * (32 * 128 * 4) * 3 / 4,
        "all-reduce": 2 * (2 * 16 * 1 / 2),
        "collective-permute": 8 * 128 * 2 + 4 * 2 * 128 * 2,
    }


def test_a_scope_names_one_turn_of_one_loop():
    named = 'to_apply=%sum.1, metadata={op_name="jit(run)/while/body/step/reduce"}'
    text = TPU.replace("to_apply=%sum.1", named, 1)
    assert hlo.turn_of(hlo.read(text)[0], "step") == "body.2"
    once = hlo.collectives(text, "step")
    assert once == {"all-gather": 32 * 128 * 2 * 3 / 4, "reduce-scatter": 32 * 128 * 4 * 3 / 4}
    with pytest.raises(ValueError, match="0 loops have instructions under another"):
        hlo.collectives(text, "another")


def test_a_scope_is_the_outermost_loop_where_compilers_moved_something_inwards():
    text = """
%inner.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %moved = f32[4]{0} negate(%p), metadata={op_name="jit(run)/while/body/step/neg"}
}

%outer.2 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0), metadata={op_name="jit(run)/while/body/step/mul"}
  ROOT %loop = f32[4]{0} while(%p), condition=%c, body=%inner.1
}

ENTRY %main.3 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %loop = f32[4]{0} while(%p), condition=%c, body=%outer.2
}
"""
    assert hlo.turn_of(hlo.read(text)[0], "step") == "outer.2"


def test_a_scope_is_not_of_a_loop_that_was_given_its_constants():
    text = """
%step.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %made = f32[4]{0} negate(%p), metadata={op_name="jit(run)/while/body/step/neg"}
}

%plain.2 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %sunk = f32[4]{0} constant({1, 1, 1, 1}), metadata={op_name="jit(run)/while/body/step/dot"}
  ROOT %made = f32[4]{0} add(%p, %sunk), metadata={op_name="jit(run)/while/body/plain/add"}
}

ENTRY %main.3 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %guided = f32[4]{0} while(%p), condition=%c, body=%step.1
  ROOT %then = f32[4]{0} while(%guided), condition=%c, body=%plain.2
}
"""
    assert hlo.turn_of(hlo.read(text)[0], "step") == "step.1"


def test_a_program_without_other_chips_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert hlo.collectives(text) == {}
    assert hlo.collectives("") == {}


@pytest.mark.parametrize("turns", [1, 5])
def test_a_compiled_loop_counts_every_turn(turns):
    mesh = jax.make_mesh((N,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @jax.shard_map(
        mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"), check_vma=False
    )
    def run(x):
        def turn(x, _):
            whole = jax.lax.all_gather(x, "fsdp", tiled=True)
            return x + jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True), None

        x, _ = jax.lax.scan(turn, x, None, length=turns)
        return jax.lax.psum(x, "fsdp")

    x = jax.ShapeDtypeStruct(
        (N * 32,), "float32", sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    found = hlo.collectives(run.lower(x).compile().as_text())
    whole = N * 32 * 4 * (N - 1) / N
    assert found["all-gather"] == pytest.approx(turns * whole)
    assert found["reduce-scatter"] == pytest.approx(turns * whole)
    assert found["all-reduce"] == pytest.approx(2 * whole / N)
