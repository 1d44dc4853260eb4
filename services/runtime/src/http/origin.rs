//! Which origins are allowed: protection against other sites' pages (CSRF, DNS rebinding), not authentication.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Uri};

/// The allowed origins, besides the service's own.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    listed: Vec<String>,
    /// Whether a cookie says who the client is.
    cookie: bool,
}

impl Origins {
    /// Parses a list such as `https://a.example,https://b.example`, or `*`.
    ///
    /// # Errors
    ///
    /// A sentence that names the entry that is not an origin.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = entries(list);
        for entry in &entries {
            let host = entry
                .strip_prefix("https://")
                .or_else(|| entry.strip_prefix("http://"));
            if entry != "*"
                && host
                    .is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#', '*', ' ']))
            {
                return Err(format!(
                    "{entry:?} is not an origin; write one such as https://app.example, or *"
                ));
            }
        }
        let cookie = false;
        Ok(Self {
            listed: entries,
            cookie,
        })
    }

    /// The same where a cookie says who the client is: pages of listed origins may send it, and the service's own pages only if they
    /// came over TLS. Without TLS, anybody on the way could have written them.
    pub fn with_cookie(mut self) -> Self {
        self.cookie = true;
        self
    }

    /// Whether a request is allowed. A request without an `Origin` comes from a tool, a server or one of the service's own
    /// pages; or from an element of another site's page, such as an image, which the browser marks.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), String> {
        let Some(origin) = headers.get(ORIGIN) else {
            let is = |name: &str, value: &str| headers.get(name).is_some_and(|sent| sent == value);
            // A link from another site may open the page, but only our own pages may embed these resources.
            let is_foreign =
                is("sec-fetch-site", "cross-site") || is("sec-fetch-site", "same-site");
            if is_foreign && !is("sec-fetch-mode", "navigate") {
                return Err("pages of other sites may not embed this; --allowed-origins lists those that may read".into());
            }
            return Ok(());
        };
        let is_own = same_host(origin, headers.get(HOST)) && (!self.cookie || is_secure(origin));
        if is_own || self.lists(origin) {
            return Ok(());
        }
        Err(format!(
            "pages of {:?} may not read here; --allowed-origins lists those that may",
            String::from_utf8_lossy(origin.as_bytes())
        ))
    }

    /// What allows a page of a listed origin to read the response.
    pub fn allow(&self, headers: &HeaderMap) -> Option<Allow> {
        let origin = headers.get(ORIGIN).filter(|origin| self.lists(origin))?;
        Some(match self.contains_all() {
            true => Allow {
                origin: HeaderValue::from_static("*"),
                credentials: false,
            },
            false => Allow {
                origin: origin.clone(),
                credentials: self.cookie,
            },
        })
    }

    /// Whether pages of every origin are allowed.
    pub fn contains_all(&self) -> bool {
        self.listed.iter().any(|entry| entry == "*")
    }

    fn lists(&self, origin: &HeaderValue) -> bool {
        self.listed
            .iter()
            .any(|entry| entry == "*" || entry.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }
}

/// The values of the headers `Access-Control-Allow-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    pub origin: HeaderValue,
    /// Whether the page may read it although its visitor's cookies were sent.
    pub credentials: bool,
}

/// The allowed host names of a service. If empty, every name is accepted, and a page that rebinds its own name to this address
/// (DNS rebinding) counts as same-origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Parses a list such as `localhost,127.0.0.1,[::1],herald.example`, without ports.
    ///
    /// # Errors
    ///
    /// A sentence that names the entry that is not a host.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = entries(list);
        for entry in &entries {
            // The entry must parse as exactly one host.
            let host = entry.parse::<Uri>().ok();
            if host.as_ref().and_then(Uri::host) != Some(entry) {
                return Err(format!(
                    "{entry:?} is not a host name; write one such as herald.example, without scheme and port"
                ));
            }
        }
        Ok(Self(entries))
    }

    /// Adds more names.
    pub fn extend(&mut self, names: impl IntoIterator<Item = &'static str>) {
        self.0.extend(names.into_iter().map(str::to_owned));
    }

    /// Whether a request was sent to one of these names, on any port; or to an IP address, because only names can be rebound
    /// (and probes use no name).
    pub fn contain(&self, host: Option<&HeaderValue>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let uri = host.and_then(|host| Uri::try_from(host.as_bytes()).ok());
        let name = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        ip_address(name).is_some() || self.0.iter().any(|entry| entry.eq_ignore_ascii_case(name))
    }
}

/// The entries of a comma-separated list, in lower case.
pub(super) fn entries(list: &str) -> Vec<String> {
    list.split(',')
        .map(|entry| entry.trim().to_ascii_lowercase())
        .filter(|entry| !entry.is_empty())
        .collect()
}

/// The address that is the host of a URL, where one of IPv6 has brackets.
pub(super) fn ip_address(host: &str) -> Option<IpAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok()
}

/// Whether a page of this origin came over TLS, or from this machine.
fn is_secure(origin: &HeaderValue) -> bool {
    let Ok(uri) = Uri::try_from(origin.as_bytes()) else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let is_local = ip_address(host).is_some_and(|ip| ip.is_loopback());
    uri.scheme_str() == Some("https") || is_local || host == "localhost"
}

/// Whether an origin has the host that the request was sent to. The scheme is not compared: TLS may have been terminated
/// before us.
fn same_host(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else {
        return false;
    };
    let Some((scheme, of)) = origin.split_once("://") else {
        return false;
    };
    let port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return false,
    };
    of.trim_end_matches(port)
        .eq_ignore_ascii_case(host.trim_end_matches(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        [(ORIGIN, origin), (HOST, host)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn our_own_pages_and_tools_may_read_and_pages_of_other_sites_may_not() {
        let nobody = Origins::default();
        assert!(
            nobody
                .check(&headers("http://localhost:8001", "localhost:8001"))
                .is_ok()
        );
        assert!(
            nobody
                .check(&headers("https://a.example", "a.example"))
                .is_ok()
        );
        assert!(nobody.check(&headers("", "localhost:8001")).is_ok());
        for foreign in [
            "http://evil.example",
            "http://localhost:8002",
            "null",
            "file://",
        ] {
            assert!(
                nobody.check(&headers(foreign, "localhost:8001")).is_err(),
                "{foreign}"
            );
        }
    }

    #[test]
    fn with_a_cookie_our_own_pages_count_only_if_nobody_could_have_written_them_on_the_way() {
        let origins = Origins::default().with_cookie();
        let check = |origin: &str, host: &str| origins.check(&headers(origin, host)).is_ok();
        assert!(check("https://a.example", "a.example"));
        assert!(check("http://localhost:8001", "localhost:8001"));
        assert!(check("http://[::1]:8001", "[::1]:8001"));
        assert!(!check("http://a.example", "a.example"));
        assert!(!check("http://10.0.0.1:5000", "10.0.0.1:5000"));
    }

    #[test]
    fn an_image_in_a_page_of_another_site_may_not_open_a_stream_but_a_link_may_open_the_page() {
        let sent = |site: &str, mode: &str| {
            let mut headers = headers("", "localhost:8001");
            headers.insert("sec-fetch-site", site.parse().unwrap());
            headers.insert("sec-fetch-mode", mode.parse().unwrap());
            Origins::default().check(&headers)
        };
        for site in ["cross-site", "same-site"] {
            assert!(sent(site, "no-cors").is_err());
            assert!(sent(site, "navigate").is_ok());
        }
        assert!(sent("same-origin", "no-cors").is_ok());
    }

    #[test]
    fn a_name_that_was_rebound_to_this_address_is_not_allowed() {
        let local = Hosts::parse("localhost, 127.0.0.1,[::1]").unwrap();
        let contain = |host: &str| local.contain(Some(&host.parse().unwrap()));
        for ours in [
            "localhost:8001",
            "LOCALHOST",
            "127.0.0.1:8001",
            "[::1]:8001",
            "10.0.0.7:5000",
        ] {
            assert!(contain(ours), "{ours}");
        }
        for foreign in ["evil.example:8001", "localhost.evil.example", "", "a b"] {
            assert!(!contain(foreign), "{foreign}");
        }
        assert!(!local.contain(None));
        assert!(Hosts::default().contain(None));
    }

    #[test]
    fn an_entry_that_is_not_a_host_is_rejected_by_name() {
        for wrong in ["http://a.example", "a.example:80", "a b", "a/b", "*"] {
            assert!(
                Hosts::parse(wrong).is_err_and(|error| error.contains(wrong)),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_listed_origin_may_read_and_is_returned_in_the_response() {
        let origins = Origins::parse("https://a.example, https://B.example").unwrap();
        let request = headers("https://b.example", "herald");
        assert!(origins.check(&request).is_ok());
        let allow = Allow {
            origin: HeaderValue::from_static("https://b.example"),
            credentials: false,
        };
        assert_eq!(origins.allow(&request), Some(allow.clone()));
        let credentials = true;
        let allow = Some(Allow {
            credentials,
            ..allow
        });
        assert_eq!(origins.clone().with_cookie().allow(&request), allow);
        assert_eq!(origins.allow(&headers("https://c.example", "herald")), None);
    }

    #[test]
    fn if_every_origin_is_allowed_the_header_is_a_star() {
        assert_eq!(
            Origins::parse("*")
                .unwrap()
                .allow(&headers("https://c.example", "herald"))
                .unwrap()
                .origin,
            "*"
        );
    }

    #[test]
    fn an_entry_that_is_not_an_origin_is_rejected_by_name() {
        for wrong in [
            "a.example",
            "https://a.example/",
            "https://",
            "https://*.example",
        ] {
            assert!(
                Origins::parse(wrong).is_err_and(|error| error.contains(wrong)),
                "{wrong}"
            );
        }
    }
}
