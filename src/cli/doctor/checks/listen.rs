//! Can kvwarden listen where it is told to?

use std::{io, net::SocketAddr};

use super::{Check, machine::Occupant};

const NAME: &str = "listen address";

pub(super) fn address(address: SocketAddr, occupant: Occupant) -> Check {
    let port = address.port();
    match occupant {
        Occupant::Nobody => Check::ok(NAME, format!("{address} is free")),
        Occupant::Kvwarden => Check::ok(NAME, format!("a kvwarden already serves at {address}")),
        Occupant::Stranger => Check::problem(
            NAME,
            format!("another program listens at {address}"),
            format!("choose another with --port, or see who it is: ss -ltnp 'sport = :{port}'"),
        ),
        Occupant::Unavailable(io::ErrorKind::PermissionDenied) => Check::problem(
            NAME,
            format!("this user may not listen at {address}"),
            "choose a port above 1023, or run: setcap cap_net_bind_service=+ep $(which kvwarden)",
        ),
        Occupant::Unavailable(io::ErrorKind::AddrNotAvailable) => Check::problem(
            NAME,
            format!(
                "no interface of this machine has the address {}",
                address.ip()
            ),
            "listen on 127.0.0.1, 0.0.0.0 or an address that `ip address` shows",
        ),
        Occupant::Unavailable(reason) => Check::problem(
            NAME,
            format!("cannot listen at {address}: {reason}"),
            "choose another with --host and --port",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    fn check(occupant: Occupant) -> Check {
        address(([127, 0, 0, 1], 80).into(), occupant)
    }

    #[test]
    fn free_address_and_our_own_are_fine() {
        assert_eq!(check(Occupant::Nobody).state, State::Ok);
        assert!(check(Occupant::Kvwarden).finding.contains("already serves"));
    }

    #[test]
    fn each_obstacle_has_its_own_fix() {
        let stranger = check(Occupant::Stranger);
        assert!(stranger.fix.unwrap().contains("sport = :80"));
        let low = check(Occupant::Unavailable(io::ErrorKind::PermissionDenied));
        assert!(low.fix.unwrap().contains("above 1023"));
        let foreign = check(Occupant::Unavailable(io::ErrorKind::AddrNotAvailable));
        assert_eq!(foreign.state, State::Problem);
    }
}
