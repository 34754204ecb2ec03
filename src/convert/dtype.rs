//! Element types of stored tensors, by their names in the safetensors format (`safetensors::Dtype` of the reference
//! implementation).

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TensorDtype {
    F64,
    F32,
    F16,
    BF16,
    /// Another type of the format: its name, and the bits of one element. No weight is made directly from it: `F8_E4M3`
    /// becomes [`TensorDtype::F32`] when it is joined with its scales, `U8` holds MXFP4 blocks.
    Other(&'static str, u64),
}

impl TensorDtype {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "I64" => Self::Other("I64", 64),
            "U64" => Self::Other("U64", 64),
            "C64" => Self::Other("C64", 64),
            "I32" => Self::Other("I32", 32),
            "U32" => Self::Other("U32", 32),
            "I16" => Self::Other("I16", 16),
            "U16" => Self::Other("U16", 16),
            "I8" => Self::Other("I8", 8),
            "U8" => Self::Other("U8", 8),
            "BOOL" => Self::Other("BOOL", 8),
            "F8_E5M2" => Self::Other("F8_E5M2", 8),
            "F8_E4M3" => Self::Other("F8_E4M3", 8),
            "F8_E8M0" => Self::Other("F8_E8M0", 8),
            "F4" => Self::Other("F4", 4),
            "F6_E2M3" => Self::Other("F6_E2M3", 6),
            "F6_E3M2" => Self::Other("F6_E3M2", 6),
            _ => return None,
        })
    }

    /// Returns the bits of one element.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::F64 => 64,
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::Other(_, bits) => bits,
        }
    }

    /// Returns the bytes of one element; `None` for types that no weight can be made from.
    pub(super) fn element_bytes(self) -> Option<u64> {
        match self {
            Self::Other(..) => None,
            known => Some(known.bits() / 8),
        }
    }
}
