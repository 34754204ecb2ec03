//! Casts between element types, with the same bits as ggml: stored bytes to 32-bit floats ([`decode`]) and 32-bit
//! floats to the plain types of a GGUF file ([`encode`]). Like llama.cpp's converter, every change of values happens
//! between the two, in 32 bits.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{ConvertError, dtype::TensorDtype};
use crate::gguf::GgmlType;

/// Elements of a Q8_0 block (`QK8_0`).
const Q8_0_ELEMENTS: usize = 32;
/// Bytes of a Q8_0 block: a 16-bit scale and 32 signed bytes.
const Q8_0_BYTES: usize = 34;

/// Value of each byte in the E4M3 format of OCP's 8-bit Floating Point Specification.
pub(super) static E4M3: [f32; 256] = e4m3();

/// Name of the tensor that errors speak of.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorName<'a>(pub(super) &'a str);

impl TensorName<'_> {
    /// Returns the error of an element that `element_type` cannot represent.
    pub(super) fn refuse(self, value: f32, element_type: &'static str) -> ConvertError {
        let advice = if value.is_finite() {
            "convert to BF16, F32 or Q8_0"
        } else {
            "the checkpoint is damaged or its training failed"
        };
        ConvertError::Number {
            tensor: self.0.to_owned(),
            value: value.to_string(),
            element_type: element_type.into(),
            advice: advice.into(),
        }
    }
}

/// Returns true if stored bytes can be copied to the target unchanged.
pub(super) fn is_same(dtype: TensorDtype, target: GgmlType) -> bool {
    matches!(
        (dtype, target),
        (TensorDtype::F32, GgmlType::F32) | (TensorDtype::F16, GgmlType::F16) | (TensorDtype::BF16, GgmlType::BF16)
    )
}

/// Returns true if [`encode`] supports a type. All other types are left to ggml's own quantizers.
pub(super) fn is_plain(target: GgmlType) -> bool {
    matches!(target, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0)
}

/// Refuses NaN and infinities among stored elements. llama.cpp would load them and answer nonsense.
pub(super) fn check_finite(owner: TensorName<'_>, dtype: TensorDtype, bytes: &[u8]) -> Result<(), ConvertError> {
    // No early exit: a loop without branches is vectorized, and bad elements are rare.
    fn any<const N: usize>(bytes: &[u8], is_special: impl Fn(&[u8; N]) -> bool) -> bool {
        let (numbers, _) = bytes.as_chunks::<N>();
        numbers.iter().fold(false, |found, number| found | is_special(number))
    }
    // NaN and the infinities are the numbers with all exponent bits set.
    let found = match dtype {
        TensorDtype::F64 => any(bytes, |number| !f64::from_le_bytes(*number).is_finite()),
        TensorDtype::F32 => any(bytes, |number| u32::from_le_bytes(*number) & 0x7f80_0000 == 0x7f80_0000),
        TensorDtype::F16 => any(bytes, |number| u16::from_le_bytes(*number) & 0x7c00 == 0x7c00),
        TensorDtype::BF16 => any(bytes, |number| u16::from_le_bytes(*number) & 0x7f80 == 0x7f80),
        TensorDtype::Other(..) => false,
    };
    if !found {
        return Ok(());
    }
    let mut numbers = Vec::new();
    decode(dtype, bytes, &mut numbers);
    let value = numbers.into_iter().find(|number| !number.is_finite());
    Err(owner.refuse(value.unwrap_or(f32::INFINITY), "a model"))
}

/// Appends the elements of stored bytes. All casts but the one from F64 are exact. Of [`TensorDtype::Other`] nothing is
/// appended: `TensorRecipe::check` has refused such tensors.
pub(super) fn decode(dtype: TensorDtype, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        TensorDtype::F64 => out.extend(numbers(bytes).iter().map(|number| f64::from_le_bytes(*number) as f32)),
        TensorDtype::F32 => out.extend(numbers(bytes).iter().map(|number| f32::from_le_bytes(*number))),
        TensorDtype::F16 => {
            let start = out.len();
            let halves: Vec<f16> = numbers(bytes)
                .iter()
                .map(|number| f16::from_le_bytes(*number))
                .collect();
            out.resize(start + halves.len(), 0.0);
            halves.convert_to_f32_slice(&mut out[start..]);
        }
        TensorDtype::BF16 => out.extend(
            numbers(bytes)
                .iter()
                .map(|number| f32::from_bits(u32::from(u16::from_le_bytes(*number)) << 16)),
        ),
        TensorDtype::Other(..) => {}
    }
}

/// Splits bytes into elements of `N` bytes each.
fn numbers<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    bytes.as_chunks().0
}

/// Appends the bytes of each element. The space is reserved in one step so that the loop is vectorized.
fn put<T: Copy, const N: usize>(numbers: &[T], out: &mut Vec<u8>, bytes: impl Fn(T) -> [u8; N]) {
    let start = out.len();
    out.resize(start + numbers.len() * N, 0);
    for (place, number) in out[start..].as_chunks_mut().0.iter_mut().zip(numbers) {
        *place = bytes(*number);
    }
}

/// Appends finite elements in a plain type. For Q8_0 their number is a multiple of 32.
///
/// # Errors
/// If an element overflows F16, or the scale of a Q8_0 block does. llama.cpp's converter writes infinities instead.
pub(super) fn encode(
    owner: TensorName<'_>,
    target: GgmlType,
    numbers: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    match target {
        GgmlType::F32 => put(numbers, out, f32::to_le_bytes),
        GgmlType::F16 => {
            let mut halves = vec![f16::ZERO; numbers.len()];
            halves.convert_from_f32_slice(numbers);
            if let Some(at) = halves.iter().position(|number| !number.is_finite()) {
                return Err(owner.refuse(numbers[at], "F16"));
            }
            put(&halves, out, f16::to_le_bytes);
        }
        GgmlType::BF16 => put(numbers, out, |number| bf16_bits(number).to_le_bytes()),
        GgmlType::Q8_0 => {
            let (blocks, _) = numbers.as_chunks::<Q8_0_ELEMENTS>();
            let start = out.len();
            out.resize(start + blocks.len() * Q8_0_BYTES, 0);
            for (place, block) in out[start..].as_chunks_mut().0.iter_mut().zip(blocks) {
                *place = q8_0(block).map_err(|scale| owner.refuse(scale, "Q8_0"))?;
            }
        }
        // `RowFormat::encode` asks `is_plain` first.
        other => unreachable_type(other),
    }
    Ok(())
}

#[track_caller]
fn unreachable_type(kind: GgmlType) {
    debug_assert!(false, "{} is no target type", kind.name());
}

/// Rounds a finite number to the nearest BF16, ties to even, like `ggml_compute_fp32_to_bf16`.
fn bf16_bits(number: f32) -> u16 {
    bf16::from_f32(number).to_bits()
}

/// Quantizes one block like `quantize_row_q8_0_ref`. The error is the largest magnitude of a block whose scale
/// overflows F16.
fn q8_0(block: &[f32; Q8_0_ELEMENTS]) -> Result<[u8; Q8_0_BYTES], f32> {
    let largest = block.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
    let scale = largest / 127.0;
    // ggml multiplies with the inverse of the unrounded scale; dividing by the stored one would give other bits.
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let stored = f16::from_f32(scale);
    if !stored.is_finite() {
        return Err(largest);
    }
    let mut out = [0; Q8_0_BYTES];
    let (head, bytes) = out.split_at_mut(Q8_0_BYTES - Q8_0_ELEMENTS);
    head.copy_from_slice(&stored.to_le_bytes());
    for (byte, number) in bytes.iter_mut().zip(block) {
        *byte = rounded(number * inverse) as u8;
    }
    Ok(out)
}

/// Rounds to the nearest integer, ties away from zero, like C's `roundf`. The magnitude is at most about 127. Unlike
/// `f32::round`, this is not a function call on x86-64 without SSE 4.1, so the loop around it is vectorized.
fn rounded(number: f32) -> i8 {
    let whole = number as i32;
    let rest = number - whole as f32;
    (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8
}

/// E4M3 has no infinities, NaN only where all bits but the sign are set, and exponent bias 7.
const fn e4m3() -> [f32; 256] {
    let mut numbers = [0.0; 256];
    let mut byte = 0;
    while byte < 128 {
        let (exponent, fraction) = (byte >> 3, (byte & 7) as u32);
        let magnitude = match exponent {
            15 if fraction == 7 => f32::NAN,
            // Subnormals: multiples of 2^-9.
            0 => fraction as f32 / 512.0,
            // 120 is the difference of the biases, 127 - 7; 20 that of the widths of the fractions, 23 - 3.
            _ => f32::from_bits((exponent as u32 + 120) << 23 | fraction << 20),
        };
        numbers[byte] = magnitude;
        numbers[byte + 128] = -magnitude;
        byte += 1;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_eight_bits() {
        for (byte, number) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x39, 1.125),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(E4M3[byte], number, "{byte:#x}");
        }
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E4M3.iter().filter(|number| !number.is_finite()).count(), 2);
    }

    fn encoded(target: GgmlType, numbers: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(TensorName("t"), target, numbers, &mut out).unwrap();
        out
    }

    fn words(bytes: &[u8]) -> Vec<u16> {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u16::from_le_bytes(*word))
            .collect()
    }

    #[test]
    fn halves_round_to_the_nearest_even() {
        // 1 + 2^-11 lies between two F16 numbers, 1 + 3 * 2^-11 as well; the even neighbor is taken.
        let numbers = [1.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -65504.0, 5.96e-8, 2.9e-8];
        let expected = [0x3c00, 0x3c00, 0x3c02, 0xfbff, 0x0001, 0x0000];
        assert_eq!(words(&encoded(GgmlType::F16, &numbers)), expected);
        let numbers = [
            f32::from_bits(0x3f80_8000),
            f32::from_bits(0x3f81_8000),
            f32::from_bits(0x3f80_8001),
            f32::from_bits(0x0000_8000),
        ];
        assert_eq!(
            words(&encoded(GgmlType::BF16, &numbers)),
            [0x3f80, 0x3f82, 0x3f81, 0x0000]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut out = Vec::new();
        let error = encode(TensorName("t"), GgmlType::F16, &[1.0, 70_000.0], &mut out).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the tensor \"t\" contains 70000, which F16 cannot hold; convert to BF16, F32 or Q8_0"
        );
        assert!(encode(TensorName("t"), GgmlType::Q8_0, &[1e10; 32], &mut out).is_err());
        for (dtype, bytes) in [
            (TensorDtype::F32, f32::NAN.to_le_bytes().to_vec()),
            (TensorDtype::F64, f64::INFINITY.to_le_bytes().to_vec()),
            (TensorDtype::F16, f16::NEG_INFINITY.to_le_bytes().to_vec()),
            (TensorDtype::BF16, bf16::NAN.to_le_bytes().to_vec()),
        ] {
            let error = check_finite(TensorName("t"), dtype, &bytes).unwrap_err().to_string();
            assert!(error.contains("damaged or its training failed"), "{error}");
            assert!(check_finite(TensorName("t"), dtype, &vec![0; bytes.len()]).is_ok());
        }
    }

    #[test]
    fn decoding_is_exact() {
        let mut out = vec![7.0];
        decode(TensorDtype::BF16, &[0x80, 0x3f, 0x49, 0x40], &mut out);
        decode(TensorDtype::F16, &[0x00, 0x3c, 0x01, 0x00], &mut out);
        decode(TensorDtype::F64, &1.5f64.to_le_bytes(), &mut out);
        assert_eq!(out, [7.0, 1.0, 3.140_625, 1.0, 5.960_464_5e-8, 1.5]);
    }

    #[test]
    fn ties_go_away_from_zero() {
        for number in [
            -127.0,
            -2.5,
            -1.5,
            -0.5,
            -0.499_999_97,
            0.0,
            0.499_999_97,
            0.5,
            1.5,
            126.499_99,
            126.5,
        ] {
            assert_eq!(i32::from(rounded(number)), number.round() as i32, "{number}");
        }
    }

    /// Vectors made by `fixtures/convert/make/q8_0.py` with the `gguf` package.
    #[test]
    fn q8_0_is_bit_exact() {
        let vectors: Vec<(Vec<u32>, Vec<u8>)> =
            serde_json::from_str(include_str!("../../fixtures/convert/q8_0.json")).unwrap();
        assert!(vectors.len() >= 64);
        for (bits, expected) in vectors {
            let numbers: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            assert_eq!(encoded(GgmlType::Q8_0, &numbers), expected, "{numbers:?}");
        }
    }
}
