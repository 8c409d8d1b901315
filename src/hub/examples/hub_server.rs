//! Runs the tests' server of the Hub's protocol, empty, at the port that is given: `tests/hub/olah.py` pushes to it.

#[path = "../tests/server.rs"]
#[allow(dead_code)]
mod server;

fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let _server = server::Server::start(port.expect("a port"));
    loop {
        std::thread::park();
    }
}
