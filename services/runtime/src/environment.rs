//! Derives the name of an environment from the name of its topic.

/// The part of `topic` before its first `-`, and `default` for `my`: `dev-topic` belongs to `dev`, `my-topic` to `default`.
pub fn environment_name(topic: &str) -> &str {
    match topic.split('-').next().unwrap_or(topic) {
        "my" => "default",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_the_topic_up_to_its_first_hyphen() {
        assert_eq!(environment_name("dev-topic"), "dev");
        assert_eq!(environment_name("prod-topic-2"), "prod");
        assert_eq!(environment_name("message"), "message");
    }

    #[test]
    fn my_is_the_default_environment() {
        assert_eq!(environment_name("my-topic"), "default");
        assert_eq!(environment_name("my"), "default");
        assert_eq!(environment_name("mytopic"), "mytopic");
    }
}
