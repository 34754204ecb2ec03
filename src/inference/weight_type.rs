//! The weight types that a conversion of a checkpoint can produce. The configuration, names such as
//! `hf:ORG/REPO:Q4_K_M` and `hubllama convert --type` all choose one of them; `convert` knows how each is made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Weight type of a GGUF file: the element type of most of its matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum WeightType {
    /// The type that most elements of the checkpoint have. Written `stored`; `auto` is an accepted alias.
    #[default]
    Stored,
    F32,
    F16,
    Bf16,
    Q8_0,
    /// A mix of types, quantized row by row with llama.cpp's functions.
    Mix(QuantizationMix),
}

/// Quantization mixes of llama.cpp (`llama_ftype`) that need no importance matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "llama.cpp's own spelling")]
pub enum QuantizationMix {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

impl WeightType {
    /// All weight types with their names: `stored`, then the plain types from wide to narrow, then the mixes.
    pub const ALL: &[(&'static str, Self)] = &[
        ("stored", Self::Stored),
        ("F32", Self::F32),
        ("F16", Self::F16),
        ("BF16", Self::Bf16),
        ("Q8_0", Self::Q8_0),
        ("Q4_0", Self::Mix(QuantizationMix::Q4_0)),
        ("Q4_1", Self::Mix(QuantizationMix::Q4_1)),
        ("Q5_0", Self::Mix(QuantizationMix::Q5_0)),
        ("Q5_1", Self::Mix(QuantizationMix::Q5_1)),
        ("Q2_K", Self::Mix(QuantizationMix::Q2_K)),
        ("Q3_K_S", Self::Mix(QuantizationMix::Q3_K_S)),
        ("Q3_K_M", Self::Mix(QuantizationMix::Q3_K_M)),
        ("Q3_K_L", Self::Mix(QuantizationMix::Q3_K_L)),
        ("Q4_K_S", Self::Mix(QuantizationMix::Q4_K_S)),
        ("Q4_K_M", Self::Mix(QuantizationMix::Q4_K_M)),
        ("Q5_K_S", Self::Mix(QuantizationMix::Q5_K_S)),
        ("Q5_K_M", Self::Mix(QuantizationMix::Q5_K_M)),
        ("Q6_K", Self::Mix(QuantizationMix::Q6_K)),
        ("IQ4_NL", Self::Mix(QuantizationMix::IQ4_NL)),
        ("IQ4_XS", Self::Mix(QuantizationMix::IQ4_XS)),
    ];
    /// Other names that [`WeightType::from_str`] and the configuration accept.
    pub const ALIASES: &[(&'static str, Self)] = &[("auto", Self::Stored)];

    /// Iterates over the types that a selector of a model name can ask for: all but [`WeightType::Stored`].
    pub fn explicit() -> impl Iterator<Item = Self> {
        let all = Self::ALL.iter().map(|(_, weight_type)| *weight_type);
        all.filter(|weight_type| *weight_type != Self::Stored)
    }

    /// Returns the explicit type with this name, in any case.
    #[must_use]
    pub fn explicit_named(name: &str) -> Option<Self> {
        Self::explicit().find(|weight_type| weight_type.name().eq_ignore_ascii_case(name))
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        let entry = Self::ALL.iter().find(|(_, weight_type)| *weight_type == self);
        // The table has all types, so the fallback is never used.
        entry.map_or("stored", |(name, _)| name)
    }
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut known = Self::ALL.iter().chain(Self::ALIASES);
        let found = known.find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, weight_type)| *weight_type).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("{text:?} is none of {}", names.join(", "))
        })
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for WeightType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<WeightType> for String {
    fn from(weight_type: WeightType) -> Self {
        weight_type.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for (name, weight_type) in WeightType::ALL {
            assert_eq!(weight_type.name(), *name);
            assert_eq!(name.to_lowercase().parse(), Ok(*weight_type));
        }
        assert_eq!("auto".parse(), Ok(WeightType::Stored));
        assert_eq!(WeightType::default(), WeightType::Stored);
        assert!("IQ1_S".parse::<WeightType>().unwrap_err().contains("none of"));
    }

    #[test]
    fn selectors_name_explicit_types() {
        assert_eq!(WeightType::explicit().count(), WeightType::ALL.len() - 1);
        assert_eq!(WeightType::explicit_named("q8_0"), Some(WeightType::Q8_0));
        assert_eq!(WeightType::explicit_named("stored"), None);
        assert_eq!(WeightType::explicit_named("auto"), None);
    }
}
