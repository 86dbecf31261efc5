"""Bytes between a chip and its memory, read from programs."""

import jax
import jax.numpy as jnp

from srum_jax.planning import traffic

KB = 1024 * 4  # of float32[32,32]
PROGRAM = """HloModule jit_step, is_scheduled=true

%taken.1 (p: f32[9,32,32], i: s32[], x: f32[32,32]) -> f32[32,32] {
  %p = f32[9,32,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[32,32]{1,0} parameter(2)
  %cut = f32[1,32,32]{2,1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,32,32}
  %flat = f32[32,32]{1,0} bitcast(%cut)
  ROOT %sum = f32[32,32]{1,0} add(%flat, %x)
}

%put.2 (p: f32[9,32,32], i: s32[], x: f32[32,32]) -> f32[9,32,32] {
  %p = f32[9,32,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[32,32]{1,0} parameter(2)
  %flat = f32[1,32,32]{2,1,0} bitcast(%x)
  ROOT %in = f32[9,32,32]{2,1,0} dynamic-update-slice(%p, %flat, %i)
}

%body.3 (arg: (s32[], f32[9,32,32], f32[32,32])) -> (s32[], f32[9,32,32], f32[32,32]) {
  %arg = (s32[], f32[9,32,32]{2,1,0}, f32[32,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %all = f32[9,32,32]{2,1,0} get-tuple-element(%arg), index=1
  %x = f32[32,32]{1,0} get-tuple-element(%arg), index=2
  %near = f32[32,32]{1,0:T(8,128)S(1)} fusion(%all, %i, %x), kind=kLoop, calls=%taken.1, metadata={op_name="jit(step)/while/body/layer/add"}
  %y = f32[32,32]{1,0} dot(%near, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %kept = f32[9,32,32]{2,1,0} fusion(%all, %i, %y), kind=kLoop, calls=%put.2
  ROOT %out = (s32[], f32[9,32,32]{2,1,0}, f32[32,32]{1,0}) tuple(%i, %kept, %y)
}

%less.4 (arg: (s32[], f32[9,32,32], f32[32,32])) -> pred[] {
  %arg = (s32[], f32[9,32,32]{2,1,0}, f32[32,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %nine = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %nine), direction=LT
}

ENTRY %main.5 (p: f32[9,32,32], x: f32[32,32]) -> f32[32,32] {
  %p = f32[9,32,32]{2,1,0} parameter(0)
  %x = f32[32,32]{1,0} parameter(1)
  %begun = (f32[32,32]{1,0:S(1)}, f32[32,32]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[32,32]{1,0:S(1)} copy-done(%begun)
  %t = (s32[], f32[9,32,32]{2,1,0}, f32[32,32]{1,0}) tuple(%zero, %p, %x)
  %loop = (s32[], f32[9,32,32]{2,1,0}, f32[32,32]{1,0}) while(%t), condition=%less.4, body=%body.3, backend_config={"known_trip_count":{"n":"9"}}
  ROOT %y = f32[32,32]{1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


def test_the_part_of_a_fusion_counts_and_every_turn():
    """A layer cut out and x read; x read and y written, what is on the chip not; y read and put."""
    turn = (1 + 1) + (1 + 1) + (1 + 1)
    indices = 2 * 4
    assert traffic.moved(PROGRAM, "layer") == turn * KB + indices
    assert traffic.moved(PROGRAM) == KB + 9 * (turn * KB + indices)


def test_a_compiled_product_reads_both_factors_and_writes_one():
    text = jax.jit(lambda x, y: x @ y).lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()
    assert traffic.moved(text.as_text()) == 4 * (64 * 32 + 32 * 16 + 64 * 16)


TPU = """HloModule jit_step

%same.1 (p: bf16[3,28,128]) -> bf16[3,28,128] {
  %p = bf16[3,28,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %b = bf16[3,28,128]{2,1,0:T(8,128)(2,1)} bitcast(%p)
}

%times.2 (p: bf16[3,28,128], q: bf16[3,28,128]) -> bf16[3,28,128] {
  %p = bf16[3,28,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[3,28,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %same = bf16[3,28,128]{2,1,0:T(8,128)(2,1)} fusion(%p), kind=kLoop, calls=%same.1
  ROOT %y = bf16[3,28,128]{2,1,0:T(8,128)(2,1)S(1)} multiply(%same, %q)
}

ENTRY %main.3 (p: bf16[3,28,128], q: bf16[3,28,128]) -> bf16[2,128] {
  %p = bf16[3,28,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[3,28,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %y = bf16[3,28,128]{2,1,0:T(8,128)(2,1)S(1)} fusion(%p, %q), kind=kLoop, calls=%times.2
  %begun = ((bf16[3,28,128]{2,1,0:T(8,128)(2,1)}), bf16[1,28,128]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1], [0:28], [0:128]}
  %cut = bf16[1,28,128]{2,1,0:T(8,128)(2,1)S(1)} slice-done(%begun)
  ROOT %z = bf16[2,128]{1,0:T(8,128)(2,1)} reduce(%y, %cut), dimensions={0}
}
"""  # noqa: E501


def test_arrays_of_a_tpu_fill_their_tiles_and_some_lie_on_the_chip():
    """28 heads take 32 rows; all of p is read for the product, a third for what is cut out."""
    assert traffic.moved(TPU) == (3 + 1) * 32 * 128 * 2 + 8 * 128 * 2


TILES = """HloModule jit_step

%tiles.1 (p: s8[9,64,128]) -> s8[9,64,128] {
  %p = s8[9,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[9,64,128]{2,1,0:T(8,128)(4,1)} copy(%p)
}

%layer.2 (p: s8[9,64,128], i: s32[]) -> s8[1,64,128] {
  %p = s8[9,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %other = s8[9,64,128]{2,1,0:T(8,128)(4,1)} fusion(%p), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiles.1
  ROOT %cut = s8[1,64,128]{2,1,0:T(8,128)(4,1)} dynamic-slice(%other, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
}

ENTRY %main.3 (p: s8[9,64,128], i: s32[]) -> s8[1,64,128] {
  %p = s8[9,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %y = s8[1,64,128]{2,1,0:T(8,128)(4,1)S(1)} fusion(%p, %i), kind=kLoop, calls=%layer.2
}
"""  # noqa: E501


def test_a_layer_read_in_other_tiles_is_a_layer():
    """Of int8 libtpu writes a change of tiles inside the fusion that cuts a layer out."""
    assert traffic.moved(TILES) == 64 * 128 + 4
