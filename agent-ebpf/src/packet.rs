//! The only pointer arithmetic on packets.

use core::{ffi::c_void, mem::MaybeUninit, mem::size_of};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET, xdp_md},
    helpers::generated::{
        bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_load_bytes_relative,
        bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes, bpf_xdp_store_bytes,
    },
    programs::{TcContext, XdpContext},
};

use crate::headers::Start;

/// Types of alignment 1 for which any bytes are a value: parts of a packet header.
///
/// # Safety
/// The type has alignment 1, no padding, and no invalid bit pattern.
pub unsafe trait Wire: Copy {}

// SAFETY: a byte array has alignment 1, no padding, and takes any bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: as above; arrays have no padding between their elements.
unsafe impl<const N: usize, const M: usize> Wire for [[u8; N]; M] {}

/// No header begins later than this in a frame. Also what the verifier needs to know of a
/// variable offset.
const MAX_OFFSET: usize = 0x7fff;

/// What a driver puts into a frame's first buffer before it takes a second, at least.
const SHORTEST_FULL_BUFFER: usize = 2048;

/// A frame, from its link header on, or from its network header where it has none. As big as a
/// pointer, so that functions can take it.
pub trait Frame: Copy {
    /// Where its headers begin.
    #[inline(always)]
    fn start(&self) -> Start {
        Start::Ethernet
    }

    /// Makes more of it readable to `copy_out`; whether there was more.
    #[inline(always)]
    fn pull(&self) -> bool {
        false
    }

    /// Addresses of the first byte and of the end of the part that can be read in place.
    fn in_place(&self) -> (usize, usize);
    /// Length in bytes, with the parts that cannot be read in place.
    fn len(&self) -> u64;
    /// The same, if its packet ends at offset `end`: cheaper where nothing of that lies in another part.
    #[inline(always)]
    fn len_to(&self, _end: usize) -> u64 {
        self.len()
    }
    /// Copies `size` bytes at `offset`, wherever they lie; false when the frame is shorter.
    ///
    /// # Safety
    /// `to` points to `size` writable bytes.
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, size: u32) -> bool;
}

/// A frame that can be changed.
pub trait FrameMut: Frame {
    /// Gives the frame another length; its bytes are no longer what they were. False when that
    /// cannot be done.
    fn resize(&self, len: u32) -> bool;
    /// Writes the bytes of `from` at `offset`; false when the frame is shorter.
    fn copy_in<T: Copy>(&self, offset: u32, from: &T) -> bool;
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct XdpFrame(pub *mut xdp_md);

impl XdpFrame {
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self(ctx.ctx)
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn in_place(&self) -> (usize, usize) {
        // SAFETY: the context is the one the program was called with. Volatile, so that the compiler
        // does not read in a caller and hand on: that loses what the verifier knows of the addresses.
        unsafe {
            let start = (&raw const (*self.0).data).read_volatile();
            let end = (&raw const (*self.0).data_end).read_volatile();
            (start as usize, end as usize)
        }
    }

    #[inline(always)]
    fn len(&self) -> u64 {
        // SAFETY: the context is the one the program was called with.
        unsafe { bpf_xdp_get_buff_len(self.0) }
    }

    #[inline(always)]
    fn len_to(&self, end: usize) -> u64 {
        let (start, first_end) = self.in_place();
        let in_first = first_end - start;
        if in_first >= end && in_first < SHORTEST_FULL_BUFFER {
            in_first as u64
        } else {
            self.len()
        }
    }

    #[inline(always)]
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, size: u32) -> bool {
        // SAFETY: the context is the program's, and the caller vouches for `to`.
        unsafe { bpf_xdp_load_bytes(self.0, offset, to, size) == 0 }
    }
}

impl FrameMut for XdpFrame {
    #[inline(always)]
    fn resize(&self, len: u32) -> bool {
        let (start, end) = self.in_place();
        // Not for a frame of several buffers, whose end is elsewhere.
        if (end - start) as u64 != self.len() {
            return false;
        }
        let delta = len as i32 - (end - start) as i32;
        // Before a frame there always is room, behind it often none.
        // SAFETY: the context is the program's; no pointer into the frame is used again.
        unsafe {
            if delta > 0 {
                bpf_xdp_adjust_head(self.0, -delta) == 0
            } else {
                bpf_xdp_adjust_tail(self.0, delta) == 0
            }
        }
    }

    #[inline(always)]
    fn copy_in<T: Copy>(&self, offset: u32, from: &T) -> bool {
        let from = core::ptr::from_ref(from).cast_mut().cast();
        // SAFETY: `from` is as long as its type, and is only read.
        unsafe { bpf_xdp_store_bytes(self.0, offset, from, size_of::<T>() as u32) == 0 }
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TcFrame(pub *mut __sk_buff);

impl TcFrame {
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }
}

impl Frame for TcFrame {
    #[inline(always)]
    fn in_place(&self) -> (usize, usize) {
        // SAFETY: as for XDP.
        unsafe {
            let start = (&raw const (*self.0).data).read_volatile();
            let end = (&raw const (*self.0).data_end).read_volatile();
            (start as usize, end as usize)
        }
    }

    #[inline(always)]
    fn len(&self) -> u64 {
        u64::from(TcContext::new(self.0).len())
    }

    #[inline(always)]
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, size: u32) -> bool {
        // SAFETY: the context is the program's, and the caller vouches for `to`.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to, size) == 0 }
    }
}

impl FrameMut for TcFrame {
    #[inline(always)]
    fn resize(&self, len: u32) -> bool {
        // SAFETY: the context is the program's; no pointer into the frame is used again.
        unsafe { bpf_skb_change_tail(self.0.cast(), len, 0) == 0 }
    }

    #[inline(always)]
    fn copy_in<T: Copy>(&self, offset: u32, from: &T) -> bool {
        let from = core::ptr::from_ref(from).cast();
        let skb = self.0.cast();
        // SAFETY: `from` is as long as its type.
        unsafe { bpf_skb_store_bytes(skb, offset, from, size_of::<T>() as u32, 0) == 0 }
    }
}

/// A packet of an interface without Ethernet headers.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct L3Frame(pub *mut __sk_buff);

/// This much of a packet is made readable first, as far as it goes: the usual headers, those of
/// tunnels too.
const L3_HEADERS: u32 = 256;

impl L3Frame {
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        let this = Self(ctx.skb.skb);
        this.pull_up_to(L3_HEADERS);
        this
    }

    /// Whether that changed anything.
    #[inline(always)]
    fn pull_up_to(self, most: u32) -> bool {
        let ctx = TcContext::new(self.0);
        let linear = ctx.data_end().saturating_sub(ctx.data());
        let len = ctx.len().min(most);
        (linear as u32) < len && ctx.pull_data(len).is_ok()
    }
}

impl Frame for L3Frame {
    #[inline(always)]
    fn start(&self) -> Start {
        // SAFETY: the context is the one the program was called with.
        let protocol = unsafe { (*self.0).protocol };
        Start::Network(u16::from_be(protocol as u16))
    }

    #[inline(always)]
    fn pull(&self) -> bool {
        self.pull_up_to(MAX_OFFSET as u32)
    }

    /// Nothing: the data begins with the headers of a tunnel where its device left them there,
    /// and how long they are is not to be had.
    #[inline(always)]
    fn in_place(&self) -> (usize, usize) {
        (0, 0)
    }

    #[inline(always)]
    fn len(&self) -> u64 {
        u64::from(TcContext::new(self.0).len())
    }

    #[inline(always)]
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, size: u32) -> bool {
        // SAFETY: the context is the program's, and the caller vouches for `to`.
        unsafe {
            bpf_skb_load_bytes_relative(self.0.cast(), offset, to, size, BPF_HDR_START_NET) == 0
        }
    }
}

/// Reads parts of a frame by their offset.
pub trait Bytes {
    /// Whether what it can't read is not there.
    const SEES_ALL: bool;

    /// `None` when the part does not lie within the frame, as far as this reader can see.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;
}

/// Reads in place: fast, and blind to fragments of a multi-buffer frame or a paged skb.
pub struct InPlace {
    start: usize,
    end: usize,
}

impl InPlace {
    #[inline(always)]
    pub fn of(frame: &impl Frame) -> Self {
        let (start, end) = frame.in_place();
        Self { start, end }
    }

    /// Reads at an offset that was in memory. One that no header has is taken for another: verifiers before
    /// 6.3 forget what a comparison has shown of a number that lies on the stack too.
    #[inline(always)]
    pub fn read_stored<T: Wire>(&self, offset: u32) -> Option<T> {
        self.read(offset as usize & MAX_OFFSET)
    }
}

impl Bytes for InPlace {
    const SEES_ALL: bool = false;

    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET || self.start + offset + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: start + offset .. + size lies before end, as just checked; `Wire` types have
        // alignment 1 and take any bytes.
        Some(unsafe { *((self.start + offset) as *const T) })
    }
}

/// Reads by copying: sees the whole frame.
pub struct Anywhere<F>(pub F);

impl<F: Frame> Anywhere<F> {
    /// Words, each with its bytes as the frame has them.
    #[inline(always)]
    pub fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: `words` has room for exactly `N` words, which is what is copied.
        let copied =
            unsafe { self.0.copy_out(offset as u32, words.as_mut_ptr().cast(), N as u32 * 4) };
        // SAFETY: the helper filled all of `words`, and any bytes are words.
        copied.then(|| unsafe { words.assume_init() })
    }
}

impl<F: Frame> Bytes for Anywhere<F> {
    const SEES_ALL: bool = true;

    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `value` has room for exactly one `T`, which is what is copied.
        let copied = unsafe {
            self.0.copy_out(offset as u32, value.as_mut_ptr().cast(), size_of::<T>() as u32)
        };
        // SAFETY: the helper filled all of `value`, and `Wire` types take any bytes.
        copied.then(|| unsafe { value.assume_init() })
    }
}

/// Sends a changed frame out of the interface that it came in by; the action that does it.
#[inline(always)]
pub fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: the context is the one the program was called with.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(interface, 0) as i32 }
}
