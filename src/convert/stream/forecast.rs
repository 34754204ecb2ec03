//! Prediction of the order in which llama.cpp reads tensors: the order of the file at first, then, within layers, the
//! order in which the tensors of an earlier layer were read.

use std::collections::HashMap;

/// Layer and tensor within the layer: `blk.3.attn_q.weight` is `(3, id of "attn_q.weight")`.
type Place = (i64, usize);

/// Forecast of reads: which tensors are still to be read, and what has been learned of their order.
#[derive(Debug)]
pub(super) struct ReadForecast {
    /// Place of each tensor; `None` outside of layers.
    places: Vec<Option<Place>>,
    tensors: HashMap<Place, usize>,
    /// True for tensors that are expected and have not been read yet.
    is_awaited: Vec<bool>,
    /// Successor of each tensor of a layer: its id, and the distance in layers.
    learned: HashMap<usize, (usize, i64)>,
    last: Option<usize>,
}

impl ReadForecast {
    /// Takes the names of all tensors in the order of the file, and whether each is expected to be read.
    pub(super) fn new<'a>(tensors: impl Iterator<Item = (&'a str, bool)>) -> Self {
        let mut ids = HashMap::new();
        let (mut places, mut is_awaited) = (Vec::new(), Vec::new());
        for (name, is_expected) in tensors {
            let place = name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'))
                .and_then(|(layer, part)| {
                    let (layer, next): (u32, usize) = (layer.parse().ok()?, ids.len());
                    Some((layer.into(), *ids.entry(part).or_insert(next)))
                });
            places.push(place);
            is_awaited.push(is_expected);
        }
        let tensors = places.iter().enumerate();
        Self {
            tensors: tensors
                .filter_map(|(tensor, place)| Some(((*place)?, tensor)))
                .collect(),
            places,
            is_awaited,
            learned: HashMap::new(),
            last: None,
        }
    }

    /// Returns the tensor that is expected first.
    pub(super) fn first(&self) -> Option<usize> {
        self.is_awaited.iter().position(|is_awaited| *is_awaited)
    }

    /// Records that the reader has begun with a tensor.
    pub(super) fn arrived(&mut self, tensor: usize) {
        self.is_awaited[tensor] = false;
        let last = self.last.replace(tensor).and_then(|last| self.places[last]);
        if let (Some((before, which)), Some((layer, next))) = (last, self.places[tensor]) {
            self.learned.insert(which, (next, layer - before));
        }
    }

    /// Returns the tensor that is probably read after another; `None` if no tensor is left.
    pub(super) fn after(&self, tensor: usize) -> Option<usize> {
        let as_before = || {
            let (layer, which) = self.places[tensor]?;
            let (next, further) = self.learned.get(&which)?;
            let next = *self.tensors.get(&(layer.checked_add(*further)?, *next))?;
            self.is_awaited[next].then_some(next)
        };
        let in_file = || {
            let count = self.places.len();
            (tensor + 1..count).chain(0..tensor).find(|next| self.is_awaited[*next])
        };
        as_before().or_else(in_file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_layer_teaches_the_order_of_the_others() {
        let names = [
            "token_embd.weight",
            "blk.0.a.weight",
            "blk.0.b.weight",
            "blk.0.c.weight",
            "blk.1.a.weight",
            "blk.1.b.weight",
            "blk.1.c.weight",
            "blk.2.a.weight",
            "blk.2.b.weight",
            "blk.2.c.weight",
            "output_norm.weight",
            "output.weight",
        ];
        let small = "output_norm.weight";
        let mut forecast = ReadForecast::new(names.iter().map(|name| (*name, *name != small)));
        let index = |name: &str| names.iter().position(|other| *other == name).unwrap();
        assert_eq!(forecast.first(), Some(0));
        // In the order of the file until something else was seen.
        forecast.arrived(0);
        assert_eq!(forecast.after(0), Some(1));
        forecast.arrived(index("output.weight"));
        assert_eq!(
            forecast.after(index("output.weight")),
            Some(1),
            "what is left is before it"
        );
        for name in ["blk.0.c.weight", "blk.0.a.weight", "blk.0.b.weight", "blk.1.c.weight"] {
            forecast.arrived(index(name));
        }
        let mut at = index("blk.1.c.weight");
        let mut rest = Vec::new();
        for _ in 0..5 {
            at = forecast.after(at).unwrap();
            rest.push(names[at]);
        }
        assert_eq!(
            rest,
            [
                "blk.1.a.weight",
                "blk.1.b.weight",
                "blk.2.c.weight",
                "blk.2.a.weight",
                "blk.2.b.weight"
            ]
        );
        for name in rest {
            forecast.arrived(index(name));
        }
        assert_eq!(forecast.after(at), None);
    }
}
