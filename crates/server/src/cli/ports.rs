//! Finds busy ports before anything starts, and says who holds them.
//!
//! The check binds each port for a moment, which is the only honest test; `/proc` then tells the holder. Where
//! it does not (another system, another user's process), the port alone is named. A port may still be taken
//! between the check and its use: whoever binds it for good reports that as well.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// Who holds a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Holder {
    /// Process id.
    pub(crate) pid: u32,
    /// Name of the program, as the kernel has it.
    pub(crate) program: String,
}

/// Why a port cannot be used.
#[derive(Debug)]
pub(crate) enum PortError {
    /// Another socket has it.
    Busy(SocketAddr, Option<Holder>),
    /// The system refuses it to us: a privileged port, or an address this machine does not have.
    Refused(SocketAddr, io::Error),
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortError::Busy(addr, Some(holder)) => {
                write!(f, "port {} is in use by {} (pid {})", addr.port(), holder.program, holder.pid)
            }
            PortError::Busy(addr, None) => write!(f, "port {} is in use by another program", addr.port()),
            PortError::Refused(addr, e) => write!(f, "cannot listen on {addr}: {e}"),
        }
    }
}

impl std::error::Error for PortError {}

/// Checks that `addr` can be listened on at this moment.
pub(crate) fn check_free(addr: SocketAddr) -> Result<(), PortError> {
    match TcpListener::bind(addr) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(PortError::Busy(addr, holder_of(addr))),
        Err(e) => Err(PortError::Refused(addr, e)),
    }
}

/// Several errors in one sentence; the ports that one process holds stand together.
pub(crate) fn joined(errors: Vec<PortError>) -> String {
    let mut held: Vec<(Holder, Vec<String>)> = Vec::new();
    let mut parts = Vec::new();
    for error in errors {
        match error {
            PortError::Busy(addr, Some(holder)) => {
                match held.iter_mut().find(|(other, _)| *other == holder) {
                    Some((_, ports)) => ports.push(addr.port().to_string()),
                    None => held.push((holder, vec![addr.port().to_string()])),
                }
            }
            error => parts.push(error.to_string()),
        }
    }
    parts.extend(held.into_iter().map(|(Holder { pid, program }, ports)| match ports.as_slice() {
        [port] => format!("port {port} is in use by {program} (pid {pid})"),
        ports => format!("ports {} are in use by {program} (pid {pid})", ports.join(", ")),
    }));
    parts.join("; ")
}

/// The process whose socket stands in the way of listening on `addr`, where `/proc` tells.
pub(crate) fn holder_of(addr: SocketAddr) -> Option<Holder> {
    let mut sockets: Vec<Socket> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().skip(1).filter_map(parse_socket).collect::<Vec<_>>())
        .filter(|socket| socket.inode != 0 && stands_in_the_way(socket.local, addr))
        .collect();
    // A listener is the usual reason; a connection that happens to use the port is the rare one.
    sockets.sort_by_key(|socket| !socket.listens);
    sockets.iter().find_map(|socket| owner_of(socket.inode))
}

struct Socket {
    local: SocketAddr,
    listens: bool,
    inode: u64,
}

/// Parses a line of `/proc/net/tcp` or `tcp6`: `sl local_address rem_address st … uid timeout inode …`.
fn parse_socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(8 * i)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Socket { local: SocketAddr::new(ip, port), listens: state == "0A", inode })
}

fn stands_in_the_way(held: SocketAddr, wanted: SocketAddr) -> bool {
    let (a, b) = (held.ip().to_canonical(), wanted.ip().to_canonical());
    held.port() == wanted.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// The process that has the socket with this inode open.
fn owner_of(inode: u64) -> Option<Holder> {
    let link = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
        });
        if holds {
            let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder { pid, program: program.trim().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_free() {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        check_free(addr).unwrap();
    }

    #[test]
    fn a_busy_port_names_its_holder() {
        let me = std::process::id();
        for listen in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let error =
                check_free(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("port {port} is in use by ")), "{listen}: {error}");
            assert!(error.ends_with(&format!("(pid {me})")), "{listen}: {error}");
        }
    }

    #[test]
    fn the_ports_of_one_process_stand_together() {
        let busy = |port, pid| {
            let holder = Holder { pid, program: "redis-server".to_owned() };
            PortError::Busy(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), Some(holder))
        };
        assert_eq!(
            joined(vec![busy(7100, 1), busy(7101, 2), busy(7102, 1)]),
            "ports 7100, 7102 are in use by redis-server (pid 1); port 7101 is in use by redis-server (pid 2)"
        );
    }

    #[test]
    fn an_address_of_another_machine_is_refused_and_not_called_busy() {
        let error = check_free("192.0.2.1:7100".parse().unwrap()).unwrap_err();
        assert!(matches!(error, PortError::Refused(..)), "{error}");
    }

    #[test]
    fn lines_of_the_socket_tables_are_understood() {
        let v4 = "   1: 0100007F:1BBC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 81234 1 0 100 0 0 10 0";
        let socket = parse_socket(v4).unwrap();
        assert_eq!(
            (socket.local, socket.listens, socket.inode),
            ("127.0.0.1:7100".parse().unwrap(), true, 81234)
        );
        let v6 = "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 01 0:0 00:0 0 0 0 7 1";
        let socket = parse_socket(v6).unwrap();
        assert_eq!((socket.local, socket.listens, socket.inode), ("[::1]:22".parse().unwrap(), false, 7));
        assert!(parse_socket("garbage").is_none());
    }
}
