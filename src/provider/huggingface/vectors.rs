//! Embedding vectors as clients want them: shortened and scaled. Pure functions.

use crate::{
    gguf::{GgufHeader, GgufValue},
    inference::{Failure, VectorNormalization},
};

/// `LLAMA_POOLING_TYPE_RANK` of llama.cpp: the output is that of a classification head.
const POOLING_TYPE_RANK: u64 = 4;

/// Shortens a vector to `dimensions` components and scales it, in place. A shortened vector is always scaled to length
/// 1.
///
/// # Errors
/// [`Failure::Invalid`] for a component that is NaN or infinite, which means that the model is broken.
pub(super) fn finish(vector: &mut Vec<f32>, dimensions: Option<u32>, unit: bool) -> Result<(), Failure> {
    if vector.iter().any(|number| !number.is_finite()) {
        return Err(Failure::Invalid("embedding contains NaN or Inf values".into()));
    }
    let shortened = dimensions
        .and_then(|count| usize::try_from(count).ok())
        .filter(|&count| count > 0 && count < vector.len());
    if unit {
        scale_to_unit(vector);
    }
    if let Some(count) = shortened {
        vector.truncate(count);
        scale_to_unit(vector);
    }
    Ok(())
}

/// Scales a vector to Euclidean length 1. A vector of zeros stays as it is.
fn scale_to_unit(vector: &mut [f32]) {
    // In f64: the squares of a long vector would lose digits, or overflow, in f32.
    let square: f64 = vector.iter().map(|&number| f64::from(number).powi(2)).sum();
    if square > 0.0 {
        let length = square.sqrt();
        for number in vector {
            *number = (f64::from(*number) / length) as f32;
        }
    }
}

/// Kind of vectors that a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VectorKind {
    /// Embeddings that Ollama's old `/api/embeddings` scales to length 1.
    Scaled,
    /// Embeddings that Ollama's old `/api/embeddings` leaves as they are.
    Raw,
    /// Scores of a classifier or a reranker, one per label. They are no direction in a space, so that scaling would
    /// destroy them.
    Scores,
}

/// Returns true if the vectors of a request are scaled to length 1.
pub(super) fn is_unit(normalization: VectorNormalization, kind: VectorKind) -> bool {
    match (normalization, kind) {
        (_, VectorKind::Scores) => false,
        (VectorNormalization::Unit, _) => true,
        (VectorNormalization::AsModel, kind) => kind == VectorKind::Scaled,
    }
}

/// Returns the kind of vectors of a model by its header.
pub(super) fn vector_kind(header: &GgufHeader) -> VectorKind {
    match header.hyperparameter("pooling_type").and_then(GgufValue::as_u64) {
        Some(POOLING_TYPE_RANK) => VectorKind::Scores,
        _ if is_scaled(header) => VectorKind::Scaled,
        _ => VectorKind::Raw,
    }
}

/// Applies Ollama's rules: BERT-like files with pooling are scaled if `normalize_embeddings` says so, or by default.
/// The default is false for nomic-bert; a BERT whose vocabulary is not WordPiece is never scaled. All other models are
/// scaled.
fn is_scaled(header: &GgufHeader) -> bool {
    let pools = header.hyperparameter("pooling_type").is_some();
    let says = |default: bool| {
        header
            .hyperparameter("normalize_embeddings")
            .and_then(GgufValue::as_bool)
            .unwrap_or(default)
    };
    match header.architecture() {
        "bert" if pools => {
            let wordpiece = header
                .get("tokenizer.ggml.model")
                .and_then(GgufValue::as_str)
                .is_some_and(|model| model == "bert");
            wordpiece && says(true)
        }
        "nomic-bert" | "nomic-bert-moe" if pools => says(false),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf;

    #[test]
    fn vectors_are_shortened_and_then_scaled_again() {
        let mut vector = vec![3.0, 4.0, 12.0];
        finish(&mut vector, Some(2), true).unwrap();
        assert!(
            (vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6,
            "{vector:?}"
        );
        let mut whole = vec![3.0, 4.0];
        finish(&mut whole, Some(2), false).unwrap();
        assert_eq!(whole, [3.0, 4.0]);
        let mut zeros = vec![0.0; 3];
        finish(&mut zeros, None, true).unwrap();
        assert_eq!(zeros, [0.0; 3]);
    }

    #[test]
    fn scores_are_never_scaled() {
        for normalization in [VectorNormalization::Unit, VectorNormalization::AsModel] {
            assert!(!is_unit(normalization, VectorKind::Scores));
            assert!(is_unit(normalization, VectorKind::Scaled));
        }
        assert!(is_unit(VectorNormalization::Unit, VectorKind::Raw));
        assert!(!is_unit(VectorNormalization::AsModel, VectorKind::Raw));
    }

    #[test]
    fn what_a_file_gives() {
        let given = |architecture: &str, pooling: u32| {
            let metadata = vec![
                (
                    "general.architecture".to_owned(),
                    GgufValue::String(architecture.to_owned()),
                ),
                (format!("{architecture}.pooling_type"), GgufValue::U32(pooling)),
            ];
            let plan = gguf::GgufLayout::new(metadata, Vec::new()).unwrap();
            vector_kind(&GgufHeader::read(plan.header(), plan.file_len()).unwrap())
        };
        assert_eq!(given("qwen3", 4), VectorKind::Scores);
        assert_eq!(given("qwen3", 3), VectorKind::Scaled);
        assert_eq!(given("nomic-bert", 1), VectorKind::Raw);
    }

    #[test]
    fn broken_numbers_are_refused() {
        assert!(finish(&mut vec![1.0, f32::NAN], None, true).is_err());
        assert!(finish(&mut vec![f32::INFINITY], None, false).is_err());
    }
}
