//! Reader of a SentencePiece model file: the fields of `sentencepiece_model.proto` that a vocabulary needs.

/// Sanity limit on the size of a vocabulary.
pub(super) const MAX_PIECES: usize = 4 << 20;

/// Fields of a `ModelProto` that matter here.
#[derive(Debug)]
pub(super) struct SentencePieceModel<'a> {
    pub(super) pieces: Vec<ProtoPiece<'a>>,
    /// `trainer_spec.model_type`: 1 is unigram, 2 is BPE.
    pub(super) kind: u64,
    pub(super) add_dummy_prefix: bool,
    /// `normalizer_spec.precompiled_charsmap`.
    pub(super) table: &'a [u8],
}

/// `ModelProto.SentencePiece`.
#[derive(Debug)]
pub(super) struct ProtoPiece<'a> {
    pub(super) text: &'a [u8],
    pub(super) score: f32,
    pub(super) kind: ProtoPieceType,
}

/// `ModelProto.SentencePiece.Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtoPieceType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl SentencePieceModel<'_> {
    pub(super) fn is_unigram(&self) -> bool {
        self.kind == 1
    }

    pub(super) fn is_bpe(&self) -> bool {
        self.kind == 2
    }
}

/// Parses a `ModelProto`; `None` if it is malformed or has no pieces.
pub(super) fn parse(bytes: &[u8]) -> Option<SentencePieceModel<'_>> {
    // The defaults of the schema: a writer leaves out fields that have them.
    let mut model = SentencePieceModel {
        pieces: Vec::new(),
        kind: 1,
        add_dummy_prefix: true,
        table: &[],
    };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => {
                if model.pieces.len() == MAX_PIECES {
                    return None;
                }
                model.pieces.push(parse_piece(piece)?);
            }
            (2, Field::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    if let (3, Field::Varint(kind)) = field? {
                        model.kind = kind;
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    match field? {
                        (2, Field::Bytes(table)) => model.table = table,
                        (3, Field::Varint(flag)) => model.add_dummy_prefix = flag != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (!model.pieces.is_empty()).then_some(model)
}

fn parse_piece(bytes: &[u8]) -> Option<ProtoPiece<'_>> {
    let mut piece = ProtoPiece {
        text: &[],
        score: 0.0,
        kind: ProtoPieceType::Normal,
    };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => piece.text = text,
            (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Varint(kind)) => {
                piece.kind = match kind {
                    2 => ProtoPieceType::Unknown,
                    3 => ProtoPieceType::Control,
                    4 => ProtoPieceType::UserDefined,
                    5 => ProtoPieceType::Unused,
                    6 => ProtoPieceType::Byte,
                    _ => ProtoPieceType::Normal,
                }
            }
            _ => {}
        }
    }
    piece.score.is_finite().then_some(piece)
}

/// Value of a protocol buffer field, by wire type.
enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// Iterator over the fields of a protocol buffer message: their numbers and values. It ends after a malformed one,
/// which is `None`.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            // Groups (3 and 4), which the schema does not have, and invalid types.
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODEL: &[u8] = include_bytes!("../../../fixtures/convert/tokenizers/spm/tokenizer.model");

    #[test]
    fn damaged_models() {
        for length in [0, 1, 100, MODEL.len() - 1] {
            assert!(parse(&MODEL[..length]).is_none_or(|model| model.pieces.len() <= 292));
        }
        assert!(parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_none());
        assert!(parse(&[0x80; 20]).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_models(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
