//! SHUTDOWN ends the process, in order.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_client_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let port = (0..100)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port())
        .find(|&base| {
            base < 60_000
                && [98, 99].iter().all(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, base + n)).is_ok())
        })
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    command.args(["server", "--base-port", &port.to_string(), "--dir"]).arg(dir.path());
    let mut server = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let start = Instant::now();
    let mut client = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(client) => break client,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    client.write_all(b"SHUTDOWN ABORT\r\nSHUTDOWN NOSAVE\r\n").unwrap();
    let mut replies = String::new();
    client.read_to_string(&mut replies).unwrap();
    // Redis answers nothing, either: the connection ends.
    assert_eq!(replies, "-ERR No shutdown in progress.\r\n");
    let status = loop {
        if let Some(status) = server.0.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < PATIENCE, "it ends");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
