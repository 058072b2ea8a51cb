//! A store of files that is written in Python.
//!
//! The Python object has one method, `submit(method, arguments, reply)`, which returns at once. A thread of its own later
//! calls `reply.deliver(result)` or `reply.fail(exception)`.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyFileNotFoundError, PyNotADirectoryError, PyPermissionError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::checkpoint::{FileStatus, Location, Reply, Store, StoredBytes};

/// A location as Python gives it: a path, and the store that it is in.
pub(super) type PyLocation = (String, Option<Py<PyAny>>);

/// The location. Its questions are given up once `cancelled` is set.
pub(super) fn location((path, store): PyLocation, cancelled: &Arc<AtomicBool>) -> Location {
    let location = match store {
        None => Location::from(path),
        Some(object) => {
            let cancelled = Arc::clone(cancelled);
            Location::in_store(&path, Arc::new(PythonStore { object, cancelled }))
        }
    };
    location.cancelled_by(cancelled)
}

struct PythonStore {
    object: Py<PyAny>,
    cancelled: Arc<AtomicBool>,
}

impl Debug for PythonStore {
    fn fmt(&self, formatter: &mut Formatter) -> fmt::Result {
        formatter.write_str("PythonStore")
    }
}

impl PythonStore {
    fn submit<A>(&self, method: &str, arguments: A, reply: PyReply)
    where
        A: for<'py> IntoPyObject<'py>,
    {
        Python::attach(|py| {
            let reply = Py::new(py, reply)?;
            let submitted = self.object.call_method1(py, "submit", (method, arguments, reply.clone_ref(py)));
            if let Err(error) = submitted {
                reply.get().answer(Err(error));
            }
            PyResult::Ok(())
        })
        // Without memory for a reply, dropping it tells the one who waits for it.
        .unwrap_or_default();
    }
}

impl Store for PythonStore {
    fn names(&self, folder: &str, reply: Reply<Vec<String>>) {
        self.submit("names", (folder,), PyReply::new(reply, |names| names.extract()));
    }

    fn status(&self, file: &str, fresh: bool, reply: Reply<FileStatus>) {
        let reply = PyReply::new(reply, |status| {
            let (length, version) = status.extract()?;
            Ok(FileStatus { length, version })
        });
        self.submit("status", (file, fresh), reply);
    }

    fn read(&self, file: &str, range: Range<u64>, reply: Reply<StoredBytes>) {
        let reply = PyReply::new(reply, |bytes| match bytes.extract::<PyBackedBytes>() {
            Ok(bytes) => Ok(Box::new(bytes) as StoredBytes),
            Err(_) => Ok(Box::new(ArrayBytes::new(bytes.extract()?)?) as StoredBytes),
        });
        self.submit("read", (file, range.start, range.end), reply);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// The bytes of an array of numpy.
struct ArrayBytes {
    _owner: Py<PyArray1<u8>>,
    bytes: *const [u8],
}

// SAFETY: the bytes are read only, and any thread may drop a reference to a Python object.
unsafe impl Send for ArrayBytes {}
// SAFETY: as above.
unsafe impl Sync for ArrayBytes {}

impl ArrayBytes {
    fn new(array: Bound<'_, PyArray1<u8>>) -> PyResult<Self> {
        let bytes: *const [u8] = array.try_readonly()?.as_slice()?;
        Ok(Self { _owner: array.unbind(), bytes })
    }
}

impl AsRef<[u8]> for ArrayBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the array lives as long as `_owner`, and numpy does not move the bytes of an array that others refer to,
        // unless its `resize` is told not to look. A store neither resizes an array nor writes to it once it has delivered
        // it.
        unsafe { &*self.bytes }
    }
}

type Answer<'py> = PyResult<Bound<'py, PyAny>>;

/// Converts the answer and gives it to the one who waits for it.
type Take = Box<dyn for<'py> FnOnce(Answer<'py>) + Send>;

/// Takes the answer to one question.
#[pyclass(frozen, name = "Reply", module = "alps._alps")]
pub(super) struct PyReply(Mutex<Option<Take>>);

impl PyReply {
    fn new<T: 'static>(
        reply: Reply<T>,
        convert: impl Fn(Bound<'_, PyAny>) -> PyResult<T> + Send + 'static,
    ) -> Self {
        let take = move |answer: Answer<'_>| reply(answer.and_then(&convert).map_err(io_error));
        Self(Mutex::new(Some(Box::new(take))))
    }

    fn answer(&self, answer: Answer<'_>) {
        let take = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(take) = take {
            take(answer);
        }
    }
}

impl Drop for PyReply {
    /// Tells the one who waits that there is no answer, if none was given.
    fn drop(&mut self) {
        self.answer(Err(PyRuntimeError::new_err("the store gave no answer")));
    }
}

/// The error of an exception, with what Python's `strerror` says, if it has that.
fn io_error(exception: PyErr) -> io::Error {
    Python::attach(|py| {
        let kind = if exception.is_instance_of::<PyFileNotFoundError>(py) {
            io::ErrorKind::NotFound
        } else if exception.is_instance_of::<PyNotADirectoryError>(py) {
            io::ErrorKind::NotADirectory
        } else if exception.is_instance_of::<PyPermissionError>(py) {
            io::ErrorKind::PermissionDenied
        } else {
            io::ErrorKind::Other
        };
        let reason = exception.value(py).getattr("strerror").and_then(|reason| reason.extract::<String>());
        io::Error::new(kind, reason.unwrap_or_else(|_| exception.value(py).to_string()))
    })
}

#[pymethods]
impl PyReply {
    /// Gives the answer.
    fn deliver(&self, result: Bound<'_, PyAny>) {
        self.answer(Ok(result));
    }

    /// Says why there is no answer.
    fn fail(&self, exception: Bound<'_, PyAny>) {
        let error = PyErr::from_value(exception);
        self.answer(Err(error));
    }
}
