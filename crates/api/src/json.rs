//! JSON as the API takes it, stricter than serde by itself: an object is an object and never a list of its values by position, a field is there
//! once, a text holds no NUL (PostgreSQL has no place for it), and `5.0` is the whole number that JSON Schema says it is. What is no JSON at all
//! is told apart from JSON that does not fit.

use axum::http::StatusCode;
use ocore_control::Error;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

use crate::problem::Problem;

/// Whole numbers that a double holds without loss.
const WHOLE: f64 = 9_007_199_254_740_992.0;
const NUL: &str = "a text cannot hold the character NUL (\\u0000); leave it out";

/// The input behind a body: 400 `malformed_json` when it is no JSON, 422 with the field when it does not fit `T`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let malformed =
        |error: &dyn std::fmt::Display| Problem::http(StatusCode::BAD_REQUEST, "malformed_json", format!("the body is not JSON: {error}"));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Sound(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() { unfit(&path, &inner.to_string()) } else { malformed(&inner) }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| unfit(&error.path().to_string(), &error.inner().to_string()))
}

fn unfit(path: &str, message: &str) -> Problem {
    // serde_json adds "at line 1 column 5": the field's name says it better.
    let message = message.split(" at line ").next().unwrap_or_default();
    Error::invalid(field_of(path, message), plainly(message)).into()
}

/// The field that a message of serde is about: the path to it, and the name that only the message has.
pub(crate) fn field_of(path: &str, message: &str) -> String {
    let path = if path == "." { "" } else { path };
    let named = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.split('`').next())
        .unwrap_or_default();
    match (path, named) {
        ("", "") => "body".to_owned(),
        ("", named) => named.to_owned(),
        (path, "") => path.to_owned(),
        (path, named) if path == named || path.ends_with(&format!(".{named}")) => path.to_owned(),
        (path, named) => format!("{path}.{named}"),
    }
}

/// A message of serde without Rust's words.
pub(crate) fn plainly(message: &str) -> String {
    if let Some((found, expected)) = message.split_once(", expected ") {
        let expected = match expected {
            "u8" => "a whole number from 0 to 255",
            "u16" => "a whole number from 0 to 65535",
            "u32" => "a whole number from 0 to 4294967295",
            "u64" | "usize" => "a whole number, 0 or more",
            "i8" | "i16" | "i32" => "a whole number from -2147483648 to 2147483647",
            "i64" => "a whole number",
            "f32" | "f64" => "a number",
            "a boolean" => "true or false",
            other if other.starts_with("struct ") || other.starts_with("a map") || other.starts_with("internally tagged ") => "an object",
            "a sequence" => "a list",
            "a UUID string" | "a formatted UUID string" => "a UUID",
            "a formatted date and time string or a unix timestamp" | "an RFC 3339 formatted date and time string" => "an RFC 3339 time",
            other => other,
        };
        let found = found.replace("invalid type: ", "this is ").replace("invalid value: ", "this is ").replace("unit value", "null");
        return format!("{}, expected {expected}", found.replace("map", "an object").replace("sequence", "a list"));
    }
    match message {
        "provided string was not `true` or `false`" => "use true or false".to_owned(),
        "invalid digit found in string" | "cannot parse integer from empty string" => "use a whole number".to_owned(),
        message if message.starts_with("number too ") => "the number is out of range".to_owned(),
        message if message.starts_with("UUID parsing failed") || message.contains("to be an optional prefix of `urn:uuid:`") => {
            "use a UUID".to_owned()
        }
        message => message.to_owned(),
    }
}

/// For `deserialize_with`, of a field that tells "left out" (with `default`: `None`) from `null` (`Some(None)`).
#[expect(clippy::option_option, reason = "left out, null and a value are three things")]
pub(crate) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// For `deserialize_with`, of a type that serde would take from a list too (an enum with a tag): only an object will do, or `null` for none.
pub(crate) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        value @ Value::Object(_) => T::deserialize(Strict(value)).map(Some).map_err(D::Error::custom),
        other => Err(D::Error::invalid_type(Strict(other).unexpected(), &"a map")),
    }
}

/// JSON in which every text can be stored and every name is there once.
struct Sound(Value);

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SoundVisitor).map(Self)
    }
}

struct SoundVisitor;

impl<'de> Visitor<'de> for SoundVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and a double holds it without loss")]
        Ok(if value.fract() == 0.0 && value.abs() <= WHOLE { (value as i64).into() } else { value.into() })
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        if value.contains('\0') { Err(E::custom(NUL)) } else { Ok(value.into()) }
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Sound(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if name.contains('\0') {
                return Err(A::Error::custom(NUL));
            }
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate field `{name}`")));
            }
            let Sound(value) = entries.next_value()?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

/// Gives a value to the type that asks for it, and only as what it is.
struct Strict(Value);

impl IntoDeserializer<'_, serde_json::Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Strict {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.0 {
            Value::Null => Unexpected::Other("null"),
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Number(value) => match (value.as_u64(), value.as_i64(), value.as_f64()) {
                (Some(value), _, _) => Unexpected::Unsigned(value),
                (_, Some(value), _) => Unexpected::Signed(value),
                (_, _, value) => Unexpected::Float(value.unwrap_or(f64::NAN)),
            },
            Value::String(value) => Unexpected::Str(value),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        }
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(value) => value.deserialize_any(visitor),
            Value::String(value) => visitor.visit_string(value),
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Strict));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(entries) => {
                let mut entries = MapDeserializer::new(entries.into_iter().map(|(name, value)| (name, Strict(value))));
                let value = visitor.visit_map(&mut entries)?;
                entries.end()?;
                Ok(value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.0.is_object() {
            return self.deserialize_any(visitor);
        }
        Err(Self::Error::invalid_type(self.unexpected(), &"a map"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if let Value::String(word) = self.0 {
            return visitor.visit_enum(word.into_deserializer());
        }
        let words = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        Err(Self::Error::invalid_type(self.unexpected(), &format!("one of {words}").as_str()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "camelCase", default, deny_unknown_fields)]
    struct Body {
        odoo_version: String,
        mappings: Vec<Mapping>,
        names: BTreeMap<String, String>,
        colour: Option<Colour>,
        whole: Option<u16>,
        part: Option<f64>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape is used")]
    struct Mapping {
        priority: i32,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        Blue,
        Green,
    }

    fn refusal(body: &str) -> (String, String) {
        match parse::<Body>(body.as_bytes()).unwrap_err() {
            Problem::Control(Error::Invalid { fields }) => (fields[0].field.clone(), fields[0].message.clone()),
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn an_input_that_does_not_fit_names_its_field() {
        let mapping = |inside: &str| format!(r#"{{"mappings": [{inside}]}}"#);
        for (body, field) in [
            (r#"{"odooVersion": 19}"#, "odooVersion"),
            (r#"{"odooVersion": "19.0", "size": 1}"#, "size"),
            (mapping(r#"{"priority": "x"}"#).as_str(), "mappings[0].priority"),
            (mapping(r#"{"priority": 1, "more": 2}"#).as_str(), "mappings[0].more"),
            (mapping(r"{}").as_str(), "mappings[0].priority"),
            (r#"{"odooVersion": "a", "odooVersion": "b"}"#, "odooVersion"),
            (r#"{"names": {"a": "x", "a": "y"}}"#, "names.a"),
        ] {
            assert_eq!(refusal(body).0, field, "{body}");
        }
    }

    #[test]
    fn a_list_is_never_taken_for_an_object() {
        for (body, field) in
            [("[]", "body"), (r#"["19.0"]"#, "body"), (r#"{"mappings": [[1]]}"#, "mappings[0]"), ("null", "body"), ("\"x\"", "body")]
        {
            let (found, message) = refusal(body);
            assert_eq!(found, field, "{body}");
            assert!(message.ends_with("expected an object"), "{message}");
        }
    }

    #[test]
    fn a_text_with_nul_is_refused_wherever_it_is() {
        for (body, field) in [
            (r#"{"odooVersion": "\u0000"}"#, "odooVersion"),
            (r#"{"names": {"a": "x\u0000"}}"#, "names.a"),
            (r#"{"mappings": [{"priority": 1, "more": ["\u0000"]}]}"#, "mappings[0].more[0]"),
        ] {
            let (found, message) = refusal(body);
            assert_eq!((found.as_str(), message.as_str()), (field, NUL), "{body}");
        }
        assert_eq!(refusal(r#"{"names": {"a\u0000": "x"}}"#).1, NUL);
    }

    #[test]
    fn a_word_of_the_wrong_type_is_a_field_that_does_not_fit() {
        for value in ["1", "true", "[]", "{}", r#"{"blue": null}"#, "1.5", r#""red""#, r#"["blue"]"#] {
            let (field, message) = refusal(&format!(r#"{{"colour": {value}}}"#));
            assert_eq!(field, "colour", "{value}");
            assert!(message.contains("`blue`"), "{message}");
        }
        assert!(parse::<Body>(br#"{"colour": null}"#).unwrap().colour.is_none());
    }

    #[test]
    fn numbers_are_whole_when_they_say_so() {
        assert_eq!(parse::<Body>(br#"{"whole": 5.0}"#).unwrap().whole, Some(5));
        assert_eq!(parse::<Body>(br#"{"whole": 5e2, "part": 2}"#).unwrap().whole, Some(500));
        for value in ["5.5", "-1", "70000", "1e30", "true", "\"5\""] {
            let (field, message) = refusal(&format!(r#"{{"whole": {value}}}"#));
            assert_eq!(field, "whole");
            assert!(message.contains("expected a whole number") && !message.contains("u16"), "{message}");
        }
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for body in ["", "{", "{} x", "{\"odooVersion\": \"\\ud800\"}", "\u{feff}{}", "{'a': 1}"] {
            match parse::<Body>(body.as_bytes()).unwrap_err() {
                Problem::Http { code, .. } => assert_eq!(code, "malformed_json", "{body}"),
                other @ Problem::Control(_) => panic!("{body}: {other:?}"),
            }
        }
        assert!(matches!(parse::<Body>(b"{\"odooVersion\": \"\xff\"}").unwrap_err(), Problem::Http { code: "malformed_json", .. }));
    }
}
