//! What a person left in a mailbox record: a record, or bytes that are none.
//!
//! Promises: bytes that are a JSON object can be answered with an `Error` field that keeps every other field as it was
//! written, and the answer is the same however often it is worked out.

use bulkhead_core::record::{MAX_ADDED, MAX_BYTES, Record, RecordError};
use serde_json::{Map, Value};

/// The longest excerpt of a parser's complaint, in characters.
const MAX_FAULT: usize = 200;

/// A mailbox record as it was found.
#[derive(Debug, Clone, PartialEq)]
pub enum Mail<R> {
    /// It can be read.
    Record(R),
    /// It cannot.
    Broken(Broken),
}

/// Bytes that are not the record that they should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Broken {
    /// What is wrong and how to write it.
    pub problem: String,
    /// The fields, if it is a JSON object.
    pub object: Option<Map<String, Value>>,
}

impl<R: Record> Mail<R> {
    /// Reads a value.
    pub fn read(value: &[u8]) -> Self {
        match R::parse(value) {
            Ok(record) => Self::Record(record),
            Err(error) => {
                let object =
                    (value.len() <= MAX_BYTES + MAX_ADDED).then(|| serde_json::from_slice(value).ok()).flatten();
                Self::Broken(Broken { problem: problem(&error), object })
            }
        }
    }

    /// The record, if it can be read.
    pub fn record(&self) -> Option<&R> {
        match self {
            Self::Record(record) => Some(record),
            Self::Broken(_) => None,
        }
    }
}

/// The reason without the line and column, which an answer written into the record would change.
fn problem(error: &RecordError) -> String {
    match error {
        RecordError::Json(source, example) => {
            let text = source.to_string();
            let fault = text.rsplit_once(" at line ").map_or(text.as_str(), |(fault, _)| fault);
            let fault: String = fault.chars().take(MAX_FAULT).collect();
            format!("the record is not valid: {fault}; write it as K8S-OVS does, for example {example}")
        }
        RecordError::TooLarge(_) => error.to_string(),
    }
}

impl Broken {
    /// The object with this `Error`, or none if it is not an object, says so already, or would be too large to be read again.
    pub fn answered(&self, error: &str) -> Option<Vec<u8>> {
        let mut object = self.object.clone()?;
        if object.get("Error").and_then(Value::as_str) == Some(error) {
            return None;
        }
        object.insert("Error".to_owned(), Value::String(error.to_owned()));
        serde_json::to_vec(&object).ok().filter(|answer| answer.len() <= MAX_BYTES + MAX_ADDED)
    }

    /// The fields that are not `ours`, to survive when ours are written anew.
    pub fn unknown(&self, ours: &[&str]) -> Map<String, Value> {
        let fields = self.object.iter().flatten();
        fields
            .filter(|(name, _)| !ours.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_core::record::NetNamespaceRecord;

    use super::*;

    fn broken(json: &str) -> Broken {
        match Mail::<NetNamespaceRecord>::read(json.as_bytes()) {
            Mail::Broken(broken) => broken,
            Mail::Record(record) => panic!("{record:?}"),
        }
    }

    #[test]
    fn an_answer_keeps_the_other_fields_and_is_given_once() {
        for json in [r#"{"NetName":"a","NetID":"10","x":[1, 2]}"#, r#"{"Error":7,"NetName":"a"}"#] {
            let first = broken(json);
            let answer = first.answered(&first.problem).unwrap();
            let text = String::from_utf8(answer.clone()).unwrap();
            assert!(text.contains(r#""NetName":"a""#) && text.contains("as K8S-OVS does"), "{text}");
            if let Mail::Broken(second) = Mail::<NetNamespaceRecord>::read(&answer) {
                assert_eq!(second.answered(&second.problem), None, "no second answer to {text}");
            }
        }
    }

    #[test]
    fn the_largest_that_is_wrong_is_answered_once() {
        let long = |length: usize| format!(r#"{{"NetName":7,"Note":"{}"}}"#, "x".repeat(length));
        let first = broken(&long(MAX_BYTES - long(0).len()));
        let answer = first.answered(&first.problem).unwrap();
        assert!(answer.len() > MAX_BYTES);
        let second = broken(std::str::from_utf8(&answer).unwrap());
        assert_eq!((&second.problem, second.answered(&second.problem)), (&first.problem, None));
        assert_eq!(broken(&long(MAX_BYTES + MAX_ADDED)).answered("x"), None);
    }

    #[test]
    fn what_is_no_object_cannot_be_answered() {
        for json in ["", "[]", "null", "{", &" ".repeat(MAX_BYTES + MAX_ADDED + 1)] {
            let broken = broken(json);
            assert_eq!(broken.answered("x"), None, "{json:?}");
            assert!(broken.problem.len() < 500);
        }
    }
}
