//! What an operator can do about a connection to Kafka that fails.

/// What is wrong with a connection, and what to do, if librdkafka's `reason` tells. Properties and their files are read only at
/// start, so each ends with a restart.
///
/// The texts are those of OpenSSL, of its names of TLS alerts, and of Kafka's answers to logins.
pub fn remedy(reason: &str) -> Option<&'static str> {
    const REMEDIES: [(&str, &str); 7] = [
        (
            "invalid credentials",
            "kafka rejects the user or the password; correct sasl.username and sasl.password, and restart",
        ),
        (
            "Unsupported SASL mechanism",
            "kafka does not offer this sasl.mechanism; set one that it offers, and restart",
        ),
        (
            "alert certificate expired",
            "kafka rejects our client certificate, because it has expired; renew the one in ssl.certificate.location, and restart",
        ),
        ("alert certificate unknown", UNTRUSTED),
        ("alert unknown ca", UNTRUSTED),
        ("alert bad certificate", MISSING),
        // Of servers that are not written in Java.
        ("alert certificate required", MISSING),
    ];
    let mut remedies = REMEDIES.into_iter();
    let known = remedies.find(|(text, _)| reason.contains(text));
    known.map(|(_, remedy)| remedy)
}

/// Java's TLS, and therefore Kafka, sends the same alert in both cases.
const UNTRUSTED: &str = "kafka rejects our client certificate, because it has expired, or no CA of its clients has signed it; renew the one \
                         in ssl.certificate.location, and restart";

/// librdkafka sends no certificate that no CA of the broker's clients has signed.
const MISSING: &str = "kafka demands a client certificate that a CA of its clients has signed; set ssl.certificate.location and \
                       ssl.key.location, and restart";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_librdkafka_has_its_remedy() {
        for (reason, expected) in [
            (
                "sasl_ssl://127.0.0.1:1/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid \
                 credentials with SASL mechanism SCRAM-SHA-512 (after 12ms in state AUTH_REQ)",
                "sasl.password",
            ),
            (
                "ssl://127.0.0.1:1/bootstrap: Receive failed: error:0A000416:SSL routines::sslv3 alert certificate unknown: SSL alert \
                 number 46 (after 199ms in state APIVERSION_QUERY)",
                "has expired, or no CA",
            ),
            (
                "ssl://127.0.0.1:1/bootstrap: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number \
                 42 (after 31ms in state APIVERSION_QUERY)",
                "ssl.key.location",
            ),
        ] {
            assert!(remedy(reason).unwrap().contains(expected), "{reason}");
        }
        assert_eq!(remedy("Connect to ipv4#127.0.0.1:1 failed"), None);
    }
}
