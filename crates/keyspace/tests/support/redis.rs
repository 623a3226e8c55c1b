//! A real redis-server as the oracle, and just enough of a client to ask it.

use super::Reply;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A redis-server of our own on a free port of the loopback interface; it goes when this is dropped.
pub struct Redis {
    stream: BufReader<TcpStream>,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Redis {
    /// Starts it. Panics with the way to install it when it is missing: these tests are not skipped in silence.
    pub fn start() -> Redis {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .args(["--enable-debug-command", "yes"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn();
        let process = child.map(Process).unwrap_or_else(|error| {
                panic!("redis-server, the oracle of these tests, does not start ({error}): apt-get install redis-server")
            });
        for _ in 0..200 {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                let mut redis = Redis { stream: BufReader::new(stream), _process: process, _dir: dir };
                let version = redis.run(&[b"INFO", b"server"]).render();
                assert!(version.contains("redis_version:7.0."), "the oracle is Redis 7.0: {version}");
                return redis;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("redis-server does not listen on port {port}");
    }

    pub fn run(&mut self, args: &[&[u8]]) -> Reply {
        let mut request = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            request.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            request.extend_from_slice(arg);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).unwrap();
        self.read()
    }

    fn read(&mut self) -> Reply {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        assert!(line.ends_with(b"\r\n"), "redis-server closed the connection");
        let text = String::from_utf8_lossy(&line[1..line.len() - 2]).into_owned();
        match line[0] {
            b'+' => Reply::Simple(text),
            b'-' => Reply::Error(text),
            b':' => Reply::Int(text.parse().unwrap()),
            b'$' if text == "-1" => Reply::Null,
            b'$' => {
                let mut bytes = vec![0; text.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes)
            }
            b'*' if text == "-1" => Reply::NullArray,
            b'*' => Reply::Array((0..text.parse::<usize>().unwrap()).map(|_| self.read()).collect()),
            kind => panic!("unexpected reply {:?}", char::from(kind)),
        }
    }
}

/// Ends with its owner: it holds nothing worth keeping.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
