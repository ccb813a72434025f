//! Callers as the limits see them: by address.

use std::net::IpAddr;

/// The address that stands for all addresses of one caller. One IPv6 network of 64 bits counts as one caller (RFC 4291
/// §2.5.4: its holder may use any address in it). An IPv4 address is the same caller over an IPv6 socket.
pub(crate) fn caller_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_has_one_address() {
        let caller = |text: &str| caller_of(text.parse().unwrap());
        assert_eq!(caller("2001:db8:1:2:3::4"), caller("2001:db8:1:2:ffff::1"));
        assert_ne!(caller("2001:db8:1:2::1"), caller("2001:db8:1:3::1"));
        assert_eq!(caller("::ffff:192.0.2.1"), caller("192.0.2.1"));
        assert_ne!(caller("192.0.2.1"), caller("192.0.2.2"));
        assert_ne!(caller("::1"), caller("127.0.0.1"));
    }
}
