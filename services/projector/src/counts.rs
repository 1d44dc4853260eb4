//! The projection of food counts: what a record changes, without Kafka and without a database.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// The most bytes of the name of a food.
const MAX_BYTES: usize = 256;

/// The food of a record's value, `{"food": "<name>"}`, exactly as it was sent. Other fields are ignored.
///
/// # Errors
///
/// If the value names no food.
pub fn food(value: &[u8]) -> Result<String, FoodError> {
    #[derive(Deserialize)]
    struct Occurrence {
        food: Option<Value>,
    }
    // An array of fields would be taken for the object too.
    let first = value.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        return Err(FoodError::Json);
    }
    let Occurrence { food } = serde_json::from_slice(value).map_err(|_| FoodError::Json)?;
    let Some(Value::String(food)) = food else {
        return Err(FoodError::NoName);
    };
    if food.is_empty() {
        Err(FoodError::Empty)
    } else if food.len() > MAX_BYTES {
        Err(FoodError::TooLong)
    } else if food.contains('\0') {
        // PostgreSQL cannot store it.
        Err(FoodError::Nul)
    } else {
        Ok(food)
    }
}

/// Why a record is not the occurrence of a food.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoodError {
    Json,
    NoName,
    Empty,
    TooLong,
    Nul,
}

impl FoodError {
    /// A label for metrics, of a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::NoName => "no-name",
            Self::Empty => "food-empty",
            Self::TooLong => "food-too-long",
            Self::Nul => "food-nul",
        }
    }
}

impl fmt::Display for FoodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json => f.write_str("the value must be a JSON object"),
            Self::NoName => f.write_str("\"food\" must be a string"),
            Self::Empty => f.write_str("\"food\" must not be empty"),
            Self::TooLong => write!(f, "\"food\" must be at most {MAX_BYTES} bytes"),
            Self::Nul => f.write_str("\"food\" must not contain NUL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_they_were_sent() {
        let longest = "x".repeat(MAX_BYTES);
        for name in ["pie", " Pie ", "foie-gras", "ĸ\u{301}", &longest] {
            let value = serde_json::json!({"food": name, "other": [1]}).to_string();
            assert_eq!(food(value.as_bytes()).as_deref(), Ok(name));
        }
        assert_eq!(food(br#"{"food": "\u0070ie"}"#).as_deref(), Ok("pie"));
    }

    #[test]
    fn what_names_no_food_is_rejected_with_its_reason() {
        let long = format!(r#"{{"food":"{}"}}"#, "x".repeat(MAX_BYTES + 1));
        // The first is the example of the task that Herald's counts come from.
        for (value, error) in [
            ("{\n    \"food\": \"sandwich\",\n}", FoodError::Json),
            ("", FoodError::Json),
            ("pie", FoodError::Json),
            ("[]", FoodError::Json),
            ("[\"pie\"]", FoodError::Json),
            ("{\"food\":\"a\",\"food\":\"b\"}", FoodError::Json),
            ("{}", FoodError::NoName),
            ("{\"food\":null}", FoodError::NoName),
            ("{\"food\":1}", FoodError::NoName),
            ("{\"food\":[\"pie\"]}", FoodError::NoName),
            ("{\"food\":\"\"}", FoodError::Empty),
            ("{\"food\":\"\\u0000\"}", FoodError::Nul),
            (&long, FoodError::TooLong),
        ] {
            assert_eq!(food(value.as_bytes()), Err(error), "{value:.30}");
        }
        assert_eq!(food(b"{\"food\":\"\xff\"}"), Err(FoodError::Json));
    }
}
