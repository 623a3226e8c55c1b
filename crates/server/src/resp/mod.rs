//! RESP, the protocol of Redis: requests in ([`RequestDecoder`]), replies out ([`RespSink`]).
//!
//! Contract: no IO. The decoder takes any bytes without a panic and answers malformed ones with Redis's own
//! texts; the sink writes RESP2 or RESP3 into one buffer that is used again and again.
//!
//! Left out: RESP3 requests (clients send RESP2 arrays in both protocols) and RESP3's attributes.

mod double;
mod inline;
mod reply;
mod request;

pub(crate) use reply::{Protocol, RespSink};
pub(crate) use request::{Limits, RequestDecoder};
