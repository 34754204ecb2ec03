//! Element types and file types with their numbers and block sizes, as of ggml 0.26 (`enum ggml_type` in `ggml.h`,
//! `ggml-common.h`, `enum llama_ftype` in `llama.h`).

macro_rules! ggml_types {
    ($($variant:ident = $id:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// Element type of a tensor.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "ggml's own spelling")]
        pub enum GgmlType {
            $($variant,)*
        }

        impl GgmlType {
            /// All types by ascending id.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the type with this number; `None` for removed and unknown ones.
            #[must_use]
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Returns the number in a file.
            #[must_use]
            pub fn id(self) -> u32 {
                match self {
                    $(Self::$variant => $id,)*
                }
            }

            /// Returns the name, for example `Q4_K`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns the elements of one block; 1 for types without blocks.
            #[must_use]
            pub fn block_elements(self) -> u64 {
                match self {
                    $(Self::$variant => $block,)*
                }
            }

            /// Returns the bytes of one block.
            #[must_use]
            pub fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$variant => $bytes,)*
                }
            }
        }
    };
}

ggml_types! {
    // Missing numbers belonged to types that ggml has removed, such as Q4_2 (4) and Q4_0_4_4 (31).
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl GgmlType {
    /// Returns the bytes of a tensor with these dimensions, fastest first; `None` if a row is not a whole number of
    /// blocks, or the size overflows.
    #[must_use]
    pub fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        if !dims.first().copied().unwrap_or(1).is_multiple_of(self.block_elements()) {
            return None;
        }
        elements(dims)?
            .checked_div(self.block_elements())?
            .checked_mul(self.block_bytes())
    }
}

/// Returns the elements of a tensor; `None` above 2^63 - 1, the limit of ggml.
pub(super) fn elements(dims: &[u64]) -> Option<u64> {
    // Checked first, so that a zero after dimensions whose product overflows gives zero, too.
    if dims.contains(&0) {
        return Some(0);
    }
    let product = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
    i64::try_from(product).is_ok().then_some(product)
}

/// Returns the name of a file type (`general.file_type`, `enum llama_ftype`); `None` for unknown ones.
#[must_use]
pub fn file_type_name(id: u64) -> Option<&'static str> {
    Some(match id {
        // Missing numbers belonged to removed types.
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        41 => "Q2_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_consistent() {
        assert_eq!(GgmlType::ALL.len(), 35);
        for (&kind, next) in GgmlType::ALL
            .iter()
            .zip(GgmlType::ALL[1..].iter().map(Some).chain([None]))
        {
            assert_eq!(GgmlType::from_id(kind.id()), Some(kind));
            assert!(next.is_none_or(|next| next.id() > kind.id()));
            assert_eq!(kind.name(), format!("{kind:?}"));
        }
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_id(removed), None);
        }
    }

    #[test]
    fn sizes() {
        for (kind, dims, bytes) in [
            (GgmlType::F32, &[][..], Some(4)),
            (GgmlType::F32, &[3, 5], Some(60)),
            (GgmlType::Q8_0, &[64, 3], Some(204)),
            (GgmlType::Q4_K, &[256, 2, 2], Some(576)),
            (GgmlType::Q4_K, &[255], None),
            (GgmlType::Q4_K, &[128, 2], None),
            (GgmlType::F32, &[0, u64::MAX], Some(0)),
            (GgmlType::F32, &[u64::MAX], None),
            (GgmlType::F32, &[1 << 32, 1 << 31], None),
            (GgmlType::F32, &[1 << 62], None),
            (GgmlType::F32, &[1 << 61], Some(1 << 63)),
        ] {
            assert_eq!(kind.tensor_bytes(dims), bytes, "{kind:?} {dims:?}");
        }
    }
}
