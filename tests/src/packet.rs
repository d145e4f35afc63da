//! Packet sockets: frames sent as they are, and frames seen on a device.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt};

use crate::error::{LabError, Tried};
use crate::netns::Netns;
use crate::syscall;

/// A packet socket on one device of one namespace.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it on a device such as `eth0`.
    pub fn open(netns: &Netns, device: &str) -> Result<Self, LabError> {
        let (name, what) = (device.to_owned(), format!("open a packet socket on {device} in {}", netns.name()));
        netns.run(move || Self::open_here(&name))?.tried(|| what)
    }

    fn open_here(device: &str) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let index = name_to_index(&socket, device)?;
        syscall::bind_packet(socket.as_fd(), index)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
        Ok(Self(socket))
    }

    /// From now on frames skip the device's qdisc.
    pub fn bypass_qdisc(self) -> Result<Self, LabError> {
        syscall::bypass_qdisc(self.0.as_fd()).tried(|| "set PACKET_QDISC_BYPASS".into())?;
        Ok(self)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<(), LabError> {
        self.try_send(frame).map(drop).tried(|| "send a frame".into())
    }

    /// Sends a frame; false when the device's queue is full.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<bool> {
        match send(&self.0, frame, SendFlags::DONTWAIT) {
            Ok(_) => Ok(true),
            Err(Errno::NOBUFS | Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a frame that `wanted` accepts.
    pub fn hear<T>(&self, limit: Duration, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>, LabError> {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 65536];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(left.max(Duration::from_millis(1))))
                .tried(|| "wait for a frame".into())?;
            if let Ok((length, _)) = recv(&self.0, &mut buffer[..], RecvFlags::empty())
                && let Some(found) = wanted(&buffer[..length])
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
