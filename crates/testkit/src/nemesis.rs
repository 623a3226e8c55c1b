//! What can be done to a cluster under test, whatever it runs on.
//!
//! | what it runs on | [`Fault`]s |
//! |---|---|
//! | [processes](crate::cluster) on the loopback | kill, freeze |
//! | the same with [proxies](crate::proxy) between them | and cut, in one direction or both, delay, reset |
//! | processes in [network namespaces](crate::namespaces), as root | kill, freeze, cut, unplug, lose |
//! | [containers](crate::compose), with an engine and as root | kill, freeze (the engine's pause), cut, lose |
//!
//! Faults add up until [`Nemesis::heal`] ends all of them. Namespaces and containers drop packets: what a firewall or a broken switch does.
//! TCP does not live with half a direction, so a one-way cut there ends connections that are open, and lets through what needs no
//! answer. Proxies hold bytes back: connections stay open, which is the nastier case. Delays need a kernel with netem, which many small
//! machines lack, or the proxies.

use std::time::Duration;

use anyhow::Result;

use crate::map::Map;

/// Something that goes wrong. Servers are named by their numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The process ends at once (SIGKILL).
    Kill(u16),
    /// The process does nothing and keeps its sockets.
    Freeze(u16),
    /// Nothing that the first of a pair sends reaches the second. Clients are not concerned.
    Cut(Vec<(u16, u16)>),
    /// Nothing reaches the server or leaves it, of clients neither, and nobody is told: packets vanish.
    Unplug(u16),
    /// What any server sends to any other takes this long.
    Delay(Duration),
    /// So many percent of what servers send each other is lost.
    Lose(u8),
    /// All connections between servers break at this moment; they may connect again.
    Reset,
}

impl Fault {
    /// Splits the servers of `map` in two: `few`, and the others.
    pub fn split(map: &Map, few: &[u16]) -> Fault {
        Fault::Cut(pairs(map).filter(|(from, to)| few.contains(from) != few.contains(to)).collect())
    }

    /// Nobody hears the server, but it hears the others.
    pub fn mute(map: &Map, server: u16) -> Fault {
        Fault::Cut(pairs(map).filter(|(from, _)| *from == server).collect())
    }

    /// The server hears nobody, but the others hear it.
    pub fn deafen(map: &Map, server: u16) -> Fault {
        Fault::Cut(pairs(map).filter(|(_, to)| *to == server).collect())
    }
}

/// All ordered pairs of different servers.
pub(crate) fn pairs(map: &Map) -> impl Iterator<Item = (u16, u16)> {
    let numbers = map.numbers();
    numbers.clone().flat_map(move |a| numbers.clone().filter(move |b| *b != a).map(move |b| (a, b)))
}

/// A cluster that faults can be done to.
pub trait Nemesis {
    /// Where its servers are.
    fn map(&self) -> &Map;

    /// Makes something go wrong, from now on.
    ///
    /// # Errors
    /// When this cluster has no such fault, or it could not be done.
    fn inflict(&mut self, fault: &Fault) -> Result<()>;

    /// Ends all faults: links work, frozen servers go on, killed ones are started. Returns before they serve.
    ///
    /// # Errors
    /// When something could not be undone.
    fn heal(&mut self) -> Result<()>;

    /// What `kvorum cluster status --json` prints.
    ///
    /// # Errors
    /// When it fails.
    fn status(&self) -> Result<serde_json::Value>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_name_the_directions_that_are_gone() {
        let map = Map::new(vec!["h".to_owned(); 3], 1, false, 7100);
        assert_eq!(Fault::split(&map, &[2]), Fault::Cut(vec![(1, 2), (2, 1), (2, 3), (3, 2)]));
        assert_eq!(Fault::mute(&map, 2), Fault::Cut(vec![(2, 1), (2, 3)]));
        assert_eq!(Fault::deafen(&map, 2), Fault::Cut(vec![(1, 2), (3, 2)]));
    }
}
