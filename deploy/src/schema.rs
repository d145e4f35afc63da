//! The schema of the chart's values with what `chart/values.yaml` says of each: editors and `helm` users see it where they write.
//!
//! Promises: each value has a description, its own comment; one that the schema does not have, and a property of the schema that
//! is no value, are refused.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use crate::values;

/// The widest object or list on one line, in characters.
const WIDTH: usize = 120;
/// What Helm itself gives to every chart.
const HELMS: &str = "global";

/// The schema with descriptions, of one with or without, and the values that it is of.
///
/// # Errors
/// It is no JSON, or it and the values differ.
pub fn described(schema: &str, values: &str) -> Result<String, String> {
    let mut schema: Json = serde_json::from_str(schema).map_err(|error| format!("the schema is no JSON: {error}"))?;
    let mut known = BTreeSet::from([HELMS.to_owned()]);
    for value in values::read(values)? {
        known.insert(describe(&mut schema, &value.path, &value.comment)?);
    }
    match unknown(&schema, "", &known) {
        Some(path) => Err(format!("the schema has {path}, which is no value with a comment in values.yaml")),
        None => Ok(written(&schema, 0) + "\n"),
    }
}

/// Sets the description of a value; the path at which it is, which is that of a map whose form is defined elsewhere.
fn describe(schema: &mut Json, path: &str, comment: &str) -> Result<String, String> {
    let missing = || format!("the schema has no {path}");
    let (mut node, mut at) = (schema, String::new());
    for key in path.split('.') {
        if node.get("$ref").is_some() {
            break;
        }
        node = node.get_mut("properties").and_then(|all| all.get_mut(key)).ok_or_else(missing)?;
        at = join(&at, key);
    }
    let object = node.as_object_mut().ok_or_else(missing)?;
    let rest = std::mem::take(object).into_iter().filter(|(key, _)| key != "description");
    *object = std::iter::once(("description".to_owned(), Json::from(comment))).chain(rest).collect();
    Ok(at)
}

/// A property that is no map of others and has no description of now.
fn unknown(node: &Json, path: &str, known: &BTreeSet<String>) -> Option<String> {
    match node.get("properties").and_then(Json::as_object) {
        Some(_) if known.contains(path) => None,
        Some(properties) => properties.iter().find_map(|(key, node)| unknown(node, &join(path, key), known)),
        None => (!known.contains(path)).then(|| path.to_owned()),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// JSON that a person reads: on one line what fits there.
fn written(json: &Json, indent: usize) -> String {
    let line = flat(json);
    let deeper = indent + 2;
    match json {
        Json::Object(map) if indent == 0 || indent + line.len() > WIDTH => block(
            '{',
            '}',
            indent,
            map.iter().map(|(key, value)| format!("{}: {}", quoted(key), written(value, deeper))),
        ),
        Json::Array(list) if indent + line.len() > WIDTH => {
            block('[', ']', indent, list.iter().map(|value| written(value, deeper)))
        }
        _ => line,
    }
}

fn block(open: char, close: char, indent: usize, parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.map(|part| format!("\n{:1$}{part}", "", indent + 2)).collect();
    format!("{open}{}\n{:indent$}{close}", parts.join(","), "")
}

fn flat(json: &Json) -> String {
    let pairs =
        |map: &Map<String, Json>| map.iter().map(|(key, value)| format!("{}: {}", quoted(key), flat(value))).collect();
    let (open, parts, close): (_, Vec<String>, _) = match json {
        Json::Object(map) => ('{', pairs(map), '}'),
        Json::Array(list) => ('[', list.iter().map(flat).collect(), ']'),
        other => return other.to_string(),
    };
    format!("{open}{}{close}", parts.join(", "))
}

fn quoted(key: &str) -> String {
    Json::from(key).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = "a:\n  # Of \"b\"\n  b: 1\n# Of c\nc: x\n";

    #[test]
    fn each_value_has_its_comment_for_a_description() {
        let schema = r#"{"properties": {"a": {"properties": {"b": {"type": "integer", "description": "old"}}}, "c": {"$ref": "y"}}}"#;
        let made = described(schema, VALUES).unwrap();
        assert!(made.contains(r#""b": {"description": "Of \"b\"", "type": "integer"}"#), "{made}");
        assert!(made.contains(r#""c": {"description": "Of c", "$ref": "y"}"#), "{made}");
        assert_eq!(described(&made, VALUES).unwrap(), made);
    }

    #[test]
    fn what_only_one_of_them_has_is_refused() {
        let with = |more: &str| format!(r#"{{"properties": {{"a": {{"properties": {{"b": {{}}}}}}{more}}}}}"#);
        assert_eq!(described(&with(""), VALUES).unwrap_err(), "the schema has no c");
        let error = described(&with(r#", "c": {}, "d": {}"#), VALUES).unwrap_err();
        assert!(error.starts_with("the schema has d, which is no value"), "{error}");
    }

    #[test]
    fn a_map_that_is_defined_elsewhere_is_described_where_it_is_used() {
        let made = described(r##"{"properties": {"a": {"$ref": "#/definitions/switch"}, "c": {}}}"##, VALUES).unwrap();
        assert!(made.contains(r#""a": {"description": "Of \"b\"", "$ref""#), "{made}");
    }
}
