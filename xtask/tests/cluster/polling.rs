//! A Socket.IO client that polls, each request on its own connection: all of them must reach the same pod.

use std::io;

use crate::http::{Response, get, request};

pub struct Polling {
    port: u16,
    path: String,
}

impl Polling {
    pub fn connect(port: u16) -> Self {
        let path = "/socket.io/?EIO=4&transport=polling".to_owned();
        let open = get(port, &path).unwrap();
        let (_, rest) = open.body.split_once(r#""sid":""#).expect("an open packet");
        let (sid, _) = rest.split_once('"').expect("an open packet");
        let path = format!("{path}&sid={sid}");
        let client = Self { port, path };
        let connected = client.post("40").unwrap();
        assert_eq!(connected.status, 200, "{}", connected.body);
        client
    }

    /// Whether the pod that receives a request knows this client. Sends a Socket.IO event, which the consumer ignores.
    pub fn is_known(&self) -> bool {
        let response = self.post(r#"42["hello"]"#);
        response.is_ok_and(|response| response.status == 200)
    }

    fn post(&self, packet: &str) -> io::Result<Response> {
        request(self.port, "POST", &self.path, packet)
    }
}
