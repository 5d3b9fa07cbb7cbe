//! Multi-head attention, including its four linear layers.

use std::sync::Arc;

use super::products::{BLOCK, Head, default_scale};
use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value, check_len};
use crate::graph::op::AttentionMasks;
use crate::kernels::{CacheLine, Matrix, product};
use crate::memory;
use crate::parallel;

/// `nn.MultiheadAttention` on three-dimensional queries, keys and values, with embedding size `E`.
#[derive(Debug)]
pub(crate) struct Multihead {
    pub heads: usize,
    pub batch_first: bool,
    /// The inputs after queries, keys and values.
    pub masks: AttentionMasks,
    /// Three blocks of `E × E` weights, inputs × outputs; `in_bias` has `3E` elements.
    pub in_weight: Vec<f32>,
    pub in_bias: Option<Vec<f32>>,
    /// `E × E` weights, inputs × outputs; `out_bias` has `E` elements.
    pub out_weight: Vec<f32>,
    pub out_bias: Option<Vec<f32>>,
}

/// Sizes of the inputs of a run.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    images: usize,
    queries: usize,
    keys: usize,
    embed: usize,
    mask: Mask,
}

/// Which numbers are added to the scores of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    None,
    /// One matrix for all images and heads.
    Scores,
    /// One matrix for every image and head.
    EachHead,
    /// One row for every image.
    Keys,
    /// [`Mask::Keys`] plus [`Mask::EachHead`] (if `true`) or [`Mask::Scores`]: one matrix for every
    /// head of every image, or for every image.
    Both(bool),
}

impl Sizes {
    /// Elements of the sum of both masks.
    fn both(&self, heads: usize) -> Option<usize> {
        match self.mask {
            Mask::Both(each_head) => memory::product([
                self.images,
                if each_head { heads } else { 1 },
                self.queries,
                self.keys,
            ]),
            _ => Some(0),
        }
    }
}

impl Multihead {
    fn sizes(&self, inputs: &[Value]) -> Result<Sizes> {
        let shapes: Vec<_> = inputs.iter().map(Value::shape).collect();
        let wrong = || {
            bad_value(
                "attention",
                "queries, keys and values of matching shapes",
                format!("{shapes:?}"),
            )
        };
        let [q, k, v, masks @ ..] = shapes.as_slice() else { return wrong() };
        let (&[a, b, embed], &[c, d, key_embed]) = (&**q, &**k) else { return wrong() };
        let (images, queries) = if self.batch_first { (a, b) } else { (b, a) };
        let (key_images, keys) = if self.batch_first { (c, d) } else { (d, c) };
        let fits = images == key_images && embed == key_embed && k == v;
        if !fits || self.heads == 0 || embed == 0 || !embed.is_multiple_of(self.heads) {
            return wrong();
        }
        let mask = match (self.masks.scores, self.masks.keys, masks) {
            (false, false, []) => Mask::None,
            (false, true, [row]) if **row == [images, keys] => Mask::Keys,
            (true, with_keys, [all, rows @ ..]) => {
                let each_head = **all == [images.saturating_mul(self.heads), queries, keys];
                let fits = each_head || **all == [queries, keys];
                match (with_keys, rows) {
                    (false, []) if fits && each_head => Mask::EachHead,
                    (false, []) if fits => Mask::Scores,
                    (true, [row]) if fits && **row == [images, keys] => Mask::Both(each_head),
                    _ => return wrong(),
                }
            }
            _ => return wrong(),
        };
        let square = embed.saturating_mul(embed);
        check_len("weights of an attention", square.saturating_mul(3), self.in_weight.len())?;
        check_len("weights of an attention", square, self.out_weight.len())?;
        check_len(
            "bias of an attention",
            3 * embed,
            self.in_bias.as_ref().map_or(3 * embed, Vec::len),
        )?;
        check_len("bias of an attention", embed, self.out_bias.as_ref().map_or(embed, Vec::len))?;
        Ok(Sizes { images, queries, keys, embed, mask })
    }
}

impl Operation for Multihead {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let sizes @ Sizes { images, queries, keys, embed, .. } = self.sizes(inputs)?;
        let output = Value::row_major(&inputs[0].shape())?;
        let tokens = queries.saturating_add(keys).saturating_mul(2);
        let scratch = memory::product([images, tokens, embed])
            .zip(sizes.both(self.heads))
            .and_then(|(tokens, mask)| tokens.checked_add(mask)?.checked_mul(size_of::<f32>()));
        let Some(scratch) = scratch.filter(|bytes| *bytes < 1 << 42) else {
            return bad_value(
                "an attention",
                "one that fits in memory",
                format!("{:?}", inputs[0].shape()),
            );
        };
        let bytes = (BLOCK * size_of::<f32>()) as u128 * keys.max(embed) as u128;
        let share = keys.saturating_mul(embed).saturating_mul(2).div_ceil(queries.max(1));
        let each =
            embed.saturating_mul(2).saturating_add(keys.saturating_mul(2)).saturating_add(share);
        Ok((output, Cost { bytes, scratch, ..Cost::of(&output.dims, each) }))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let sizes = self.sizes(inputs)?;
        Ok((self.measure(inputs)?.0, Box::new(MultiheadStep { layer: self, sizes })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![Order::RowMajor; inputs.len()], Order::RowMajor) // small: an order each
    }

    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let weights =
            size_of_val(self.in_weight.as_slice()) + size_of_val(self.out_weight.as_slice());
        vec![(name, "gemm-f32", weights)] // small: one
    }
}

#[derive(Debug)]
struct MultiheadStep {
    layer: Arc<Multihead>,
    sizes: Sizes,
}

/// Rows per product. Each product packs the weights again, so blocks are larger than elsewhere.
const ROWS: usize = 4 * BLOCK;

/// `x · weight + bias` for every row of `x`.
fn project(
    x: &[f32],
    out: &mut [f32],
    embed: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Result<()> {
    let cost = out.len().saturating_mul(embed).saturating_mul(8);
    parallel::try_for_each_rows(out, embed, BLOCK, cost, |first, out| {
        for (b, out) in out.chunks_mut(ROWS * embed).enumerate() {
            let x = &x[(first + b * ROWS) * embed..][..out.len()];
            let rows = out.len() / embed;
            product([rows, embed, embed], Matrix(x, [embed, 1]), Matrix(weight, [embed, 1]), out);
            for out in out.chunks_exact_mut(embed) {
                out.iter_mut().zip(bias.unwrap_or_default()).for_each(|(y, &b)| *y += b);
            }
        }
        Ok(())
    })
}

/// Adds a mask of the scores and a mask of the keys. The former is the same for all images, or, if
/// `each_head`, differs between heads and images.
fn add_masks(
    scores: &[f32],
    columns: &[f32],
    Sizes { images, queries, keys, .. }: Sizes,
    each_head: bool,
    out: &mut [f32],
) -> Result<()> {
    let rows_of_image = out.len() / (images * keys).max(1);
    parallel::try_for_each_rows(out, keys.max(1), BLOCK, out.len(), |first, rows| {
        for (i, row) in rows.chunks_exact_mut(keys.max(1)).enumerate() {
            let from = if each_head { first + i } else { (first + i) % queries };
            let image = (first + i) / rows_of_image;
            let (scores, columns) = (&scores[from * keys..], &columns[image * keys..]);
            for ((sum, a), b) in row.iter_mut().zip(scores).zip(columns) {
                *sum = a + b;
            }
        }
        Ok(())
    })
}

impl ExecutableOp for MultiheadStep {
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (Sizes { images, queries, keys, embed, mask }, layer, out) =
            (self.sizes, &*self.layer, out.floats());
        let (d, square) = (embed / layer.heads, embed * embed);
        let scratch = CacheLine::floats_in(scratch);
        let (q, rest) = scratch.split_at_mut(images * queries * embed);
        let (k, rest) = rest.split_at_mut(images * keys * embed);
        let (v, rest) = rest.split_at_mut(images * keys * embed);
        let (attended, both) = rest.split_at_mut(images * queries * embed);
        let both = &mut both[..self.sizes.both(layer.heads).unwrap_or(0)];
        if let Mask::Both(each_head) = mask {
            add_masks(inputs[3].floats(), inputs[4].floats(), self.sizes, each_head, both)?;
        }
        let both = &*both;
        for (i, to) in [&mut *q, &mut *k, &mut *v].into_iter().enumerate() {
            let bias = layer.in_bias.as_ref().map(|bias| &bias[i * embed..][..embed]);
            project(inputs[i].floats(), to, embed, &layer.in_weight[i * square..][..square], bias)?;
        }
        let (queries_in, keys_in, values_in) = (&*q, &*k, &*v);
        // The offset of an image's first token, and the distance from one token to the next.
        let token = |image: usize, tokens: usize| {
            if layer.batch_first {
                (image * tokens * embed, embed)
            } else {
                (image * embed, images * embed)
            }
        };
        // Rows of `attended` are `[image][head][query]`.
        let cost = attended.len().saturating_mul(keys).saturating_mul(16);
        parallel::try_for_each_rows(attended, (queries * d).max(1), 1, cost, |first, attended| {
            for (i, attended) in attended.chunks_exact_mut(queries * d).enumerate() {
                let (image, head) = ((first + i) / layer.heads, (first + i) % layer.heads);
                let part = |x, tokens| {
                    let (at, step) = token(image, tokens);
                    Matrix(<[f32]>::get(x, at + head * d..).unwrap_or_default(), [step, 1])
                };
                let (q, k, v) =
                    (part(queries_in, queries), part(keys_in, keys), part(values_in, keys));
                let matrix = queries * keys;
                let mask = match mask {
                    Mask::None => None,
                    Mask::Scores => Some((inputs[3].floats(), [keys, 1])),
                    Mask::EachHead => {
                        Some((&inputs[3].floats()[(first + i) * matrix..], [keys, 1]))
                    }
                    Mask::Keys => Some((&inputs[3].floats()[image * keys..], [0, 1])),
                    Mask::Both(true) => Some((&both[(first + i) * matrix..], [keys, 1])),
                    Mask::Both(false) => Some((&both[image * matrix..], [keys, 1])),
                };
                let head = Head { q, k, v, mask, scale: default_scale(d), causal: false };
                head.run([queries, keys, d, d], attended)?;
            }
            Ok(())
        })?;
        // Transpose back so that all heads of a token are next to each other. The result overwrites
        // the queries.
        let attended = &*attended;
        parallel::try_for_each_rows(q, embed, BLOCK, attended.len(), |first, rows| {
            for (i, token) in rows.chunks_exact_mut(embed).enumerate() {
                let at = first + i;
                let (image, query) = if layer.batch_first {
                    (at / queries, at % queries)
                } else {
                    (at % images, at / images)
                };
                for (head, to) in token.chunks_exact_mut(d).enumerate() {
                    to.copy_from_slice(
                        &attended[((image * layer.heads + head) * queries + query) * d..][..d],
                    );
                }
            }
            Ok(())
        })?;
        project(q, out, embed, &layer.out_weight, layer.out_bias.as_deref())
    }
}
