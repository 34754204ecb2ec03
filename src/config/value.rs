//! Codecs between written values and typed settings: one for each form, such as a duration, a byte size or a list.

use std::{collections::BTreeMap, fmt::Display, path::PathBuf, time::Duration};

use serde_json::{Value as Json, json};

use super::{
    JsonSchemas, LogFormat, ProviderName, SafetensorsMode, TokenizerMismatch, UnsupportedTools, XetUse, suggest::hint,
};
use crate::{
    go::duration::GoDuration,
    inference::{AutoSwitch, KeepAlive, KvCacheType, SplitMode, WeightType},
    stdx::Secret,
};

/// A written value whose type is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// Text from the environment or the command line, which may stand for any type.
    Word(String),
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    List(Vec<Raw>),
    /// A TOML table, which is no valid value.
    Table,
    /// A TOML date or time, which is no valid value.
    Date,
}

impl Raw {
    fn expected(&self, what: &str) -> String {
        let found = match self {
            Self::Word(text) | Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Boolean(flag) => flag.to_string(),
            Self::List(_) => "a list".into(),
            Self::Table => "a table".into(),
            Self::Date => "a date".into(),
        };
        format!("expected {what}, found {found}")
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text.trim()),
            _ => None,
        }
    }
}

/// A written form of `T`.
pub(super) trait Codec<T> {
    fn read(raw: &Raw) -> Result<T, String>;
    fn show(value: &T) -> Json;
}

pub(super) struct TextCodec;

impl Codec<String> for TextCodec {
    fn read(raw: &Raw) -> Result<String, String> {
        match raw {
            Raw::Word(text) | Raw::Text(text) => Ok(text.clone()),
            _ => Err(raw.expected("a text in quotes")),
        }
    }

    fn show(value: &String) -> Json {
        value.as_str().into()
    }
}

/// A list of values in the form `C`, separated by commas in the environment; a single value is a list of one.
pub(super) struct ListCodec<C>(std::marker::PhantomData<C>);

impl<T, C: Codec<T>> Codec<Vec<T>> for ListCodec<C> {
    fn read(raw: &Raw) -> Result<Vec<T>, String> {
        match raw {
            Raw::List(items) => items.iter().map(C::read).collect(),
            Raw::Word(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| C::read(&Raw::Word(item.to_owned()))).collect()
            }
            Raw::Text(_) | Raw::Integer(_) | Raw::Float(_) => Ok(vec![C::read(raw)?]),
            _ => Err(raw.expected("a list")),
        }
    }

    fn show(value: &Vec<T>) -> Json {
        value.iter().map(C::show).collect()
    }
}

/// A value in the form `C` that may be unset.
pub(super) struct OptionCodec<C>(std::marker::PhantomData<C>);

impl<T, C: Codec<T>> Codec<Option<T>> for OptionCodec<C> {
    fn read(raw: &Raw) -> Result<Option<T>, String> {
        C::read(raw).map(Some)
    }

    fn show(value: &Option<T>) -> Json {
        value.as_ref().map_or(Json::Null, C::show)
    }
}

/// `true` or `false`; in the environment also the words of [`flag_word`].
pub(super) struct BoolCodec;

impl Codec<bool> for BoolCodec {
    fn read(raw: &Raw) -> Result<bool, String> {
        let parsed = match raw {
            Raw::Boolean(flag) => Some(*flag),
            Raw::Word(text) => flag_word(text),
            _ => None,
        };
        parsed.ok_or_else(|| raw.expected("true or false"))
    }

    fn show(value: &bool) -> Json {
        (*value).into()
    }
}

/// Parses a boolean: the words of Go's `strconv.ParseBool`, in any case, and yes, no, on and off.
pub(super) fn flag_word(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "yes" | "on" => Some(true),
        "0" | "f" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

pub(super) struct IntegerCodec;

impl<T: TryFrom<i128> + Copy + Display> Codec<T> for IntegerCodec {
    fn read(raw: &Raw) -> Result<T, String> {
        let number = match raw {
            Raw::Integer(number) => *number,
            Raw::Word(text) => text.trim().parse().map_err(|_| raw.expected("a whole number"))?,
            _ => return Err(raw.expected("a whole number")),
        };
        T::try_from(number).map_err(|_| {
            // A type that cannot hold -1 has no negative values.
            if number < 0 && T::try_from(-1).is_err() {
                format!("expected a whole number, 0 or more, found {number}")
            } else {
                format!("{number} is out of range")
            }
        })
    }

    fn show(value: &T) -> Json {
        value
            .to_string()
            .parse::<serde_json::Number>()
            .map_or(Json::Null, Json::Number)
    }
}

pub(super) struct FloatCodec;

impl Codec<f32> for FloatCodec {
    #[expect(clippy::cast_possible_truncation, reason = "the engine's own precision")]
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    fn read(raw: &Raw) -> Result<f32, String> {
        let number = match raw {
            Raw::Integer(number) => *number as f32,
            Raw::Float(number) => *number as f32,
            Raw::Word(text) => text.trim().parse().map_err(|_| raw.expected("a number"))?,
            _ => return Err(raw.expected("a number")),
        };
        if number.is_finite() {
            Ok(number)
        } else {
            Err(raw.expected("a finite number"))
        }
    }

    fn show(value: &f32) -> Json {
        // Through the shortest decimal form: 0.8f32 widened to f64 would show as 0.800000011920929.
        value.to_string().parse::<f64>().map_or(Json::Null, Json::from)
    }
}

/// A number of bytes, such as `65536`, `"64KiB"`, `"4MB"`.
pub(super) struct ByteSizeCodec;

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Codec<T> for ByteSizeCodec {
    fn read(raw: &Raw) -> Result<T, String> {
        let expected = || raw.expected("a size such as \"64KiB\", \"4MB\" or a number of bytes");
        let bytes = match raw {
            Raw::Integer(number) => u64::try_from(*number).ok(),
            _ => raw.text().and_then(size_word),
        };
        T::try_from(bytes.ok_or_else(expected)?).map_err(|_| raw.expected("a smaller size"))
    }

    fn show(value: &T) -> Json {
        let bytes: u64 = (*value).try_into().unwrap_or(u64::MAX);
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
            Some((unit, name)) => format!("{}{name}", bytes / unit).into(),
            None => bytes.into(),
        }
    }
}

fn size_word(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

const TIME_FORMS: &str = "a duration such as \"5m\", \"1h30m\" or a number of seconds";

/// A duration, such as `"5m"`, `"1h30m"`, `"500ms"`, or a number of seconds.
pub(super) struct DurationCodec;

impl Codec<Duration> for DurationCodec {
    fn read(raw: &Raw) -> Result<Duration, String> {
        signed_time(raw, TIME_FORMS)?
            .to_std()
            .ok_or_else(|| raw.expected("a duration that is not negative"))
    }

    fn show(value: &Duration) -> Json {
        GoDuration::from(*value).to_string().into()
    }
}

/// A keep-alive time in the form of [`DurationCodec`], in which any negative value means forever.
pub(super) struct KeepAliveCodec;

impl Codec<KeepAlive> for KeepAliveCodec {
    fn read(raw: &Raw) -> Result<KeepAlive, String> {
        let time = signed_time(
            raw,
            "a duration such as \"5m\", a number of seconds, or -1 for no limit",
        )?;
        Ok(time.to_std().map_or(KeepAlive::Forever, KeepAlive::For))
    }

    fn show(value: &KeepAlive) -> Json {
        match value {
            KeepAlive::Forever => (-1).into(),
            KeepAlive::For(time) => DurationCodec::show(time),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the range is checked before, and a fraction of 1 ns is nothing"
)]
fn signed_time(raw: &Raw, forms: &str) -> Result<GoDuration, String> {
    let seconds = |seconds: f64| {
        let nanos = seconds * 1e9;
        // i64::MAX rounds up to 2^63 as f64, hence `<`: the largest value that passes still converts.
        let fits = nanos.abs() < i64::MAX as f64;
        if fits {
            Ok(GoDuration::from_nanos(nanos as i64))
        } else {
            Err(raw.expected("a shorter duration"))
        }
    };
    match raw {
        Raw::Integer(number) => seconds(*number as f64),
        Raw::Float(number) => seconds(*number),
        Raw::Word(text) | Raw::Text(text) => match text.trim().parse::<i64>() {
            Ok(number) => seconds(number as f64),
            Err(_) => GoDuration::parse(text.trim()).map_err(|_| raw.expected(forms)),
        },
        _ => Err(raw.expected(forms)),
    }
}

/// Word of a [`Named`] type.
pub(super) struct ChoiceCodec;

/// A type whose values are written as words.
pub(super) trait Named: Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];
    /// Other names that are read, but neither shown nor suggested.
    const ALIASES: &'static [(&'static str, Self)] = &[];
}

impl Named for ProviderName {
    const NAMES: &'static [(&'static str, Self)] = &[("ollama", Self::Ollama), ("huggingface", Self::HuggingFace)];
}

impl Named for SplitMode {
    const NAMES: &'static [(&'static str, Self)] = &[("none", Self::None), ("layer", Self::Layer), ("row", Self::Row)];
}

impl Named for UnsupportedTools {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("ignore", Self::Ignore),
        ("refuse", Self::Refuse),
        ("prompt", Self::Prompt),
    ];
}

impl Named for TokenizerMismatch {
    const NAMES: &'static [(&'static str, Self)] = &[("refuse", Self::Refuse), ("warn", Self::Warn)];
}

impl Named for JsonSchemas {
    const NAMES: &'static [(&'static str, Self)] = &[("relaxed", Self::Relaxed), ("strict", Self::Strict)];
}

impl Named for WeightType {
    const NAMES: &'static [(&'static str, Self)] = Self::ALL;
    const ALIASES: &'static [(&'static str, Self)] = Self::ALIASES;
}

impl Named for XetUse {
    const NAMES: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("auto", Self::Auto), ("always", Self::Always)];
}

impl Named for SafetensorsMode {
    const NAMES: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("stream", Self::Stream), ("file", Self::File)];
}

impl Named for LogFormat {
    const NAMES: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

impl Named for KvCacheType {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("f16", Self::F16),
        ("bf16", Self::Bf16),
        ("f32", Self::F32),
        ("q8_0", Self::Q8_0),
        ("q4_0", Self::Q4_0),
    ];
}

impl Named for AutoSwitch {
    const NAMES: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("on", Self::On), ("off", Self::Off)];
}

impl<T: Named> Codec<T> for ChoiceCodec {
    fn read(raw: &Raw) -> Result<T, String> {
        // A boolean stands for the words on and off, if the type has them.
        let text = match raw {
            Raw::Boolean(true) => "on",
            Raw::Boolean(false) => "off",
            // No choice has an empty name.
            _ => raw.text().unwrap_or_default(),
        };
        let mut known = T::NAMES.iter().chain(T::ALIASES);
        let found = known.find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names = T::NAMES.iter().map(|(name, _)| *name);
            let quoted: Vec<String> = names.clone().map(|name| format!("\"{name}\"")).collect();
            raw.expected(&format!("one of {}", quoted.join(", "))) + &hint(text, names)
        })
    }

    fn show(value: &T) -> Json {
        T::NAMES
            .iter()
            .find(|(_, named)| named == value)
            .map_or(Json::Null, |(name, _)| (*name).into())
    }
}

/// A path. The loader replaces a leading `~` by the home folder.
pub(super) struct PathCodec;

impl Codec<PathBuf> for PathCodec {
    fn read(raw: &Raw) -> Result<PathBuf, String> {
        match raw.text() {
            Some("") | None => Err(raw.expected("a path in quotes")),
            Some(text) => Ok(PathBuf::from(text)),
        }
    }

    fn show(value: &PathBuf) -> Json {
        json!(value.to_string_lossy())
    }
}

/// A secret, which is neither shown nor repeated in an error.
pub(super) struct SecretCodec;

impl Codec<Option<Secret<String>>> for SecretCodec {
    fn read(raw: &Raw) -> Result<Option<Secret<String>>, String> {
        match raw.text() {
            // An empty token means no token, as in huggingface_hub.
            Some("") => Ok(None),
            Some(text) => Ok(Some(Secret::new(text.to_owned()))),
            // Not `Raw::expected`, which repeats the value.
            None => Err("expected a text in quotes".into()),
        }
    }

    fn show(value: &Option<Secret<String>>) -> Json {
        value.as_ref().map_or(Json::Null, |_| "[redacted]".into())
    }
}

/// Secrets by name, each written `"NAME=SECRET"`. They are neither shown nor repeated in an error.
pub(super) struct NamedSecretsCodec;

impl Codec<BTreeMap<String, Secret<String>>> for NamedSecretsCodec {
    fn read(raw: &Raw) -> Result<BTreeMap<String, Secret<String>>, String> {
        let texts: Vec<&str> = match raw {
            Raw::List(items) => items.iter().map(|item| item.text().unwrap_or_default()).collect(),
            Raw::Word(text) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect(),
            Raw::Text(text) => vec![text.trim()],
            _ => Vec::new(),
        };
        let mut tokens = BTreeMap::new();
        for text in texts {
            let Some((name, token)) = text.split_once('=').map(|(name, token)| (name.trim(), token.trim())) else {
                return Err("expected texts such as \"my-org=hf_example\", found one without =".into());
            };
            if tokens
                .insert(name.to_ascii_lowercase(), Secret::new(token.to_owned()))
                .is_some()
            {
                return Err(format!("names {name:?} twice"));
            }
        }
        if tokens.is_empty() && !matches!(raw, Raw::List(_) | Raw::Word(_)) {
            return Err("expected a list of texts such as \"my-org=hf_example\"".into());
        }
        Ok(tokens)
    }

    fn show(value: &BTreeMap<String, Secret<String>>) -> Json {
        value.keys().map(|name| format!("{name}=[redacted]")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Raw {
        Raw::Word(text.into())
    }

    #[test]
    fn sizes() {
        let cases = [
            ("0", Some(0)),
            ("64KiB", Some(65_536)),
            ("64 kib", Some(65_536)),
            ("4MB", Some(4_000_000)),
            ("4Gi", Some(4 << 30)),
            ("4XB", None),
            ("-1", None),
            ("1.5GB", None),
            ("", None),
            ("99999999999GiB", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(<ByteSizeCodec as Codec<u64>>::read(&word(text)).ok(), bytes, "{text}");
        }
        assert_eq!(<ByteSizeCodec as Codec<u64>>::show(&(4 << 20)), json!("4MiB"));
        assert_eq!(<ByteSizeCodec as Codec<u64>>::show(&1000), json!(1000));
    }

    #[test]
    fn times_and_stays() {
        let second = Duration::from_secs(1);
        assert_eq!(DurationCodec::read(&word("5m")), Ok(300 * second));
        assert_eq!(DurationCodec::read(&Raw::Float(1.5)), Ok(Duration::from_millis(1500)));
        assert_eq!(DurationCodec::read(&Raw::Text("90".into())), Ok(90 * second));
        assert!(DurationCodec::read(&Raw::Integer(-1)).is_err());
        assert!(DurationCodec::read(&Raw::Float(1e300)).is_err());
        assert!(DurationCodec::read(&Raw::Float(f64::NAN)).is_err());
        assert_eq!(KeepAliveCodec::read(&Raw::Integer(-1)), Ok(KeepAlive::Forever));
        assert_eq!(KeepAliveCodec::read(&Raw::Text("-1m".into())), Ok(KeepAlive::Forever));
        assert_eq!(KeepAliveCodec::read(&Raw::Integer(0)), Ok(KeepAlive::ZERO));
    }

    #[test]
    fn choices_name_themselves() {
        assert_eq!(
            <ChoiceCodec as Codec<AutoSwitch>>::read(&Raw::Boolean(true)),
            Ok(AutoSwitch::On)
        );
        assert_eq!(
            <ChoiceCodec as Codec<KvCacheType>>::read(&word("Q8_0")),
            Ok(KvCacheType::Q8_0)
        );
        assert_eq!(
            <ChoiceCodec as Codec<UnsupportedTools>>::read(&word("refues")),
            Err(
                "expected one of \"ignore\", \"refuse\", \"prompt\", found \"refues\" (did you mean \"refuse\"?)"
                    .into()
            )
        );
    }

    #[test]
    fn tokens_are_read_and_never_shown() {
        let raw = Raw::List(vec![Raw::Text("My-Org = hf_a".into()), Raw::Text("b=hf_b=".into())]);
        let tokens = NamedSecretsCodec::read(&raw).unwrap();
        assert_eq!(tokens["my-org"].expose(), "hf_a");
        assert_eq!(tokens["b"].expose(), "hf_b=");
        assert_eq!(
            NamedSecretsCodec::show(&tokens),
            json!(["b=[redacted]", "my-org=[redacted]"])
        );
        assert_eq!(NamedSecretsCodec::read(&word("my-org=hf_a,b=hf_b=")), Ok(tokens));
        for bad in [
            Raw::Text("hf_secret".into()),
            word("a=x,A=y"),
            Raw::Integer(1),
            Raw::Table,
        ] {
            let sentence = NamedSecretsCodec::read(&bad).unwrap_err();
            assert!(!sentence.contains("secret"), "{sentence}");
        }
    }

    #[test]
    fn numbers_show_as_written() {
        assert_eq!(FloatCodec::show(&0.8), json!(0.8));
        assert_eq!(
            <IntegerCodec as Codec<u32>>::read(&Raw::Integer(-1)),
            Err("expected a whole number, 0 or more, found -1".into())
        );
        assert_eq!(
            <IntegerCodec as Codec<u32>>::read(&Raw::Integer(1 << 40)),
            Err("1099511627776 is out of range".into())
        );
    }
}
