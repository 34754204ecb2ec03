//! C streams over Rust readers: a `FILE*` whose every read and seek is answered here.
//!
//! glibc and musl have `fopencookie` for this; on other systems models are loaded from real files only.

use std::{
    ffi::{c_char, c_int, c_void},
    io::{Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
};

use super::LlamaError;

/// Reader that C can be made to read from, such as a checkpoint that is converted while it is read.
pub trait ModelSource: Read + Seek {}

impl<T: Read + Seek> ModelSource for T {}

/// `cookie_io_functions_t` of `fopencookie(3)`; offsets have 64 bits with both libraries.
#[repr(C)]
struct CookieFunctions {
    read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
    write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: CookieFunctions) -> *mut libc::FILE;
}

struct Cookie<'a> {
    source: &'a mut dyn ModelSource,
    /// First error of the source; C is only told that there was one.
    error: Option<String>,
}

/// `FILE*` that is open for reading.
pub(super) struct CFile<'a> {
    file: NonNull<libc::FILE>,
    /// Owned. Not a `Box`, which would claim to be the only pointer, because C holds this pointer too.
    cookie: NonNull<Cookie<'a>>,
}

impl<'a> CFile<'a> {
    pub(super) fn open(source: &'a mut dyn ModelSource) -> Result<Self, LlamaError> {
        let cookie = Box::new(Cookie { source, error: None });
        let cookie = NonNull::from(Box::leak(cookie));
        let functions = CookieFunctions {
            read: Some(read),
            write: None,
            seek: Some(seek),
            close: None,
        };
        // The buffering of stdio stays on: without it (`setvbuf` with _IONBF), glibc reads one byte a call, and a load
        // of a small model takes seconds instead of tenths.
        // SAFETY: the mode ends with NUL; the cookie lives until the file is closed.
        let file = unsafe { fopencookie(cookie.as_ptr().cast(), c"rb".as_ptr(), functions) };
        match NonNull::new(file) {
            Some(file) => Ok(Self { file, cookie }),
            None => {
                // SAFETY: the pointer came from a box, and C has not kept it.
                drop(unsafe { Box::from_raw(cookie.as_ptr()) });
                Err(LlamaError::Load("there is no memory for a stream".to_owned()))
            }
        }
    }

    pub(super) fn as_ptr(&self) -> *mut libc::FILE {
        self.file.as_ptr()
    }

    /// Takes the first error of the source.
    pub(super) fn take_error(&mut self) -> Option<String> {
        // SAFETY: C uses the cookie only inside of calls with the file, and none is under way.
        unsafe { self.cookie.as_mut() }.error.take()
    }
}

impl Drop for CFile<'_> {
    fn drop(&mut self) {
        // SAFETY: nobody else has the file; once it is closed, nobody else has the cookie either, which came from a
        // box.
        unsafe {
            libc::fclose(self.file.as_ptr());
            drop(Box::from_raw(self.cookie.as_ptr()));
        }
    }
}

/// Calls `operation` with the source of a stream. An error is kept, and so is a panic, which must not unwind into C.
fn with_source<T>(
    cookie: *mut c_void,
    operation: impl FnOnce(&mut dyn ModelSource) -> std::io::Result<T>,
) -> Option<T> {
    // SAFETY: C passes the cookie of an open file, and calls on one thread at a time.
    let cookie = unsafe { &mut *cookie.cast::<Cookie<'_>>() };
    let source = &mut *cookie.source;
    let error = match catch_unwind(AssertUnwindSafe(|| operation(source))) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the source of the model panicked".to_owned(),
    };
    cookie.error.get_or_insert(error);
    None
}

unsafe extern "C" fn read(cookie: *mut c_void, buffer: *mut c_char, size: usize) -> isize {
    if size == 0 {
        return 0;
    }
    // SAFETY: the buffer has room for `size` bytes. They are written first, because C's buffer is not initialized.
    let buffer = unsafe {
        buffer.write_bytes(0, size);
        std::slice::from_raw_parts_mut(buffer.cast::<u8>(), size)
    };
    with_source(cookie, |source| source.read(buffer)).map_or(-1, |count| count as isize)
}

unsafe extern "C" fn seek(cookie: *mut c_void, offset: *mut i64, whence: c_int) -> c_int {
    // SAFETY: C passes a valid pointer.
    let offset = unsafe { &mut *offset };
    let to = match whence {
        libc::SEEK_SET => SeekFrom::Start(*offset as u64),
        libc::SEEK_CUR => SeekFrom::Current(*offset),
        libc::SEEK_END => SeekFrom::End(*offset),
        _ => return -1,
    };
    let position = with_source(cookie, |source| source.seek(to)).and_then(|position| i64::try_from(position).ok());
    match position {
        Some(position) => {
            *offset = position;
            0
        }
        None => -1,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Error, Result};

    use super::*;

    fn read_all(file: &CFile<'_>, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        // SAFETY: the buffer is as long as stated.
        let read = unsafe { libc::fread(bytes.as_mut_ptr().cast(), 1, count, file.as_ptr()) };
        bytes.truncate(read);
        bytes
    }

    #[test]
    fn c_reads_and_seeks() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut source = Cursor::new(content.clone());
        let mut file = CFile::open(&mut source).unwrap();
        for (offset, count) in [(0, 24), (200_001, 50_000), (8190, 4), (399_990, 100), (3, 400_000)] {
            // SAFETY: the file is open.
            assert_eq!(unsafe { libc::fseeko(file.as_ptr(), offset, libc::SEEK_SET) }, 0);
            let start = offset as usize;
            assert!(read_all(&file, count) == content[start..content.len().min(start + count)]);
        }
        // SAFETY: the file is open.
        unsafe {
            assert_eq!(libc::fseeko(file.as_ptr(), 0, libc::SEEK_END), 0);
            assert_eq!(libc::ftello(file.as_ptr()), 400_000);
            assert_ne!(libc::fseeko(file.as_ptr(), -400_001, libc::SEEK_CUR), 0);
        }
        assert!(file.take_error().is_some());
        assert_eq!(file.take_error(), None);
    }

    /// Source that panics (if the first field is set) or fails at the second read.
    struct Broken(bool, u32);

    impl Read for Broken {
        fn read(&mut self, out: &mut [u8]) -> Result<usize> {
            self.1 += 1;
            match (self.1, self.0) {
                (1, _) => Ok(out.len().min(10)),
                (_, true) => panic!("in a callback"),
                (_, false) => Err(Error::other("the shard is gone")),
            }
        }
    }

    impl Seek for Broken {
        fn seek(&mut self, _: SeekFrom) -> Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn an_error_and_a_panic_are_kept_and_do_not_cross() {
        for (panics, expected) in [(false, "the shard is gone"), (true, "the source of the model panicked")] {
            let mut source = Broken(panics, 0);
            let mut file = CFile::open(&mut source).unwrap();
            assert_eq!(read_all(&file, 5000).len(), 10);
            assert_eq!(file.take_error().as_deref(), Some(expected));
        }
    }
}
