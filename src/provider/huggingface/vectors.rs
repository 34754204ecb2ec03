//! Vectors as clients want them: shortened and scaled. Pure.

use crate::{
    gguf::{GgufHeader, GgufValue},
    inference::{Failure, VectorNormalization},
};

/// llama.cpp's number of the pooling that ends in a head.
const RANK: u64 = 4;

/// Shortens and scales a vector in place.
///
/// # Errors
/// When it holds numbers that are none: the model is broken.
pub(super) fn finish(vector: &mut Vec<f32>, dimensions: Option<u32>, unit: bool) -> Result<(), Failure> {
    if vector.iter().any(|number| !number.is_finite()) {
        return Err(Failure::Invalid("embedding contains NaN or Inf values".into()));
    }
    let shortened = dimensions
        .and_then(|count| usize::try_from(count).ok())
        .filter(|&count| count > 0 && count < vector.len());
    if unit {
        scale(vector);
    }
    if let Some(count) = shortened {
        vector.truncate(count);
        scale(vector);
    }
    Ok(())
}

/// To Euclidean length 1; a vector of zeros stays.
fn scale(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|&number| f64::from(number).powi(2)).sum();
    if square > 0.0 {
        let length = square.sqrt();
        for number in vector {
            *number = (f64::from(*number) / length) as f32;
        }
    }
}

/// What the numbers of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Vectors that the old `/api/embeddings` scales.
    Scaled,
    /// Vectors that it leaves as they are.
    Raw,
    /// Of the labels of a classifier or a reranker: no vector has their direction, so nothing may be scaled.
    Scores,
}

/// Whether vectors are scaled to length 1.
pub(super) fn is_unit(normalization: VectorNormalization, numbers: Numbers) -> bool {
    match (normalization, numbers) {
        (_, Numbers::Scores) => false,
        (VectorNormalization::Unit, _) => true,
        (VectorNormalization::AsModel, numbers) => numbers == Numbers::Scaled,
    }
}

/// What a file gives.
pub(super) fn numbers(header: &GgufHeader) -> Numbers {
    match header.hyperparameter("pooling_type").and_then(GgufValue::as_u64) {
        Some(RANK) => Numbers::Scores,
        _ if is_scaled(header) => Numbers::Scaled,
        _ => Numbers::Raw,
    }
}

/// Ollama's rules: BERT-like files with pooling say so or have a default, which is no for nomic-bert and for BERT with a
/// vocabulary that is not WordPiece; all others are scaled.
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
            assert!(!is_unit(normalization, Numbers::Scores));
            assert!(is_unit(normalization, Numbers::Scaled));
        }
        assert!(is_unit(VectorNormalization::Unit, Numbers::Raw));
        assert!(!is_unit(VectorNormalization::AsModel, Numbers::Raw));
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
            numbers(&GgufHeader::read(plan.header(), plan.file_len()).unwrap())
        };
        assert_eq!(given("qwen3", 4), Numbers::Scores);
        assert_eq!(given("qwen3", 3), Numbers::Scaled);
        assert_eq!(given("nomic-bert", 1), Numbers::Raw);
    }

    #[test]
    fn broken_numbers_are_refused() {
        assert!(finish(&mut vec![1.0, f32::NAN], None, true).is_err());
        assert!(finish(&mut vec![f32::INFINITY], None, false).is_err());
    }
}
