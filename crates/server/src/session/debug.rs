//! DEBUG, as far as it is about the server: for test suites, and only for whom `enable-debug-command` allows it.

use crate::port::Place;
use crate::resp::{Protocol, RespSink};
use crate::settings::{self, Extent};
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink};
use tracing::info;

pub(super) const NOT_ALLOWED: Error = Error::new(
    "ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it from a local \
     connection, otherwise you need to set this option in the configuration file, and then restart the server.",
);

pub(super) fn debug(command: &Command, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    match command.subname() {
        "set-active-expire" => {
            let Some(replica) = place.replica else {
                return Err(Error::new("CLUSTERDOWN The cluster is down"));
            };
            // As C's atoi has it: what is no number is 0.
            let on = super::integer(args[2]).is_ok_and(|number| number != 0);
            replica.set_active_expire(on);
            out.ok();
        }
        "error" => return Err(Error::owned(args[2])),
        "log" => {
            info!(message = %String::from_utf8_lossy(args[2]), "DEBUG LOG");
            out.ok();
        }
        "config-rewrite-force-all" => {
            settings::rewrite(place, Extent::Everything)?;
            out.ok();
        }
        _ => protocol(args[2], out)?,
    }
    Ok(())
}

/// DEBUG PROTOCOL: a reply of each type, for clients that learn to read them.
fn protocol(kind: &[u8], out: &mut RespSink) -> Outcome {
    #[expect(clippy::approx_constant, reason = "what Redis answers")]
    const DOUBLE: f64 = 3.141;
    const BIG_NUMBER: &str = "1234567999999999999999999999999999999";
    let resp3 = out.protocol() == Protocol::Resp3;
    match kind.to_ascii_lowercase().as_slice() {
        b"string" => out.bulk(b"Hello World"),
        b"integer" => out.int(12345),
        b"double" => out.double(DOUBLE),
        b"bignum" if resp3 => out.raw(format!("({BIG_NUMBER}\r\n").as_bytes()),
        b"bignum" => out.bulk(BIG_NUMBER.as_bytes()),
        b"null" => out.null(),
        b"array" => {
            out.array(3);
            (0..3).for_each(|n| out.int(n));
        }
        b"set" => {
            out.set(3);
            (0..3).for_each(|n| out.int(n));
        }
        b"map" => {
            out.map(3);
            for n in 0..3 {
                out.int(n);
                out.boolean(n == 1);
            }
        }
        b"attrib" => {
            let attribute: &[u8] =
                if resp3 { b"|1\r\n$14\r\nkey-popularity\r\n*2\r\n$7\r\nkey:123\r\n:90\r\n" } else { b"" };
            out.raw(&[attribute, b"$39\r\nSome real reply following the attribute\r\n"].concat());
        }
        b"push" if resp3 => {
            out.raw(b">2\r\n$16\r\nserver-cpu-usage\r\n:42\r\n$40\r\nSome real reply following the push reply\r\n");
        }
        b"push" => return Err(Error::new("ERR RESP2 is not supported by this command")),
        b"verbatim" => out.verbatim("txt", b"This is a verbatim\nstring"),
        b"true" => out.boolean(true),
        b"false" => out.boolean(false),
        _ => {
            return Err(Error::new(
                "ERR Wrong protocol type name. Please use one of the following: \
                 string|integer|double|bignum|null|array|set|map|attrib|push|verbatim|true|false",
            ));
        }
    }
    Ok(())
}
