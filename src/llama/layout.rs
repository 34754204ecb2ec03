//! The only place that relies on the memory layout of llama-cpp-2's types.
//!
//! [`LlamaModel`] and [`LlamaLoraAdapter`] are `repr(transparent)` over a pointer that is never NULL, but neither takes
//! nor gives that pointer, and some of llama.cpp's functions have no safe counterpart. `Cargo.toml` pins the crate
//! exactly; the test below tells when an update changes the layout.

use std::ptr::{self, NonNull};

use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_sys_2 as sys;

/// Makes a [`LlamaModel`] of a model that was loaded by a call that the crate does not have.
///
/// # Safety
/// The pointer comes from one of llama.cpp's load functions, and nobody else frees it.
pub(super) unsafe fn model_from_raw(raw: NonNull<sys::llama_model>) -> LlamaModel {
    // SAFETY: the layout is equal, see above; the caller gives up the ownership that the new value takes.
    unsafe { std::mem::transmute::<NonNull<sys::llama_model>, LlamaModel>(raw) }
}

/// Returns the pointer in a [`LlamaModel`], which is valid as long as the model lives.
pub(super) fn model_ptr(model: &LlamaModel) -> *mut sys::llama_model {
    // SAFETY: the layout is equal, see above.
    unsafe { *ptr::from_ref(model).cast() }
}

/// Returns the pointer in a [`LlamaLoraAdapter`], which is valid as long as the adapter's model lives.
pub(super) fn adapter_ptr(adapter: &LlamaLoraAdapter) -> *mut sys::llama_adapter_lora {
    // SAFETY: the layout is equal, see above.
    unsafe { *ptr::from_ref(adapter).cast() }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    #[test]
    fn a_model_is_its_pointer() {
        let raw = NonNull::dangling();
        // SAFETY: the pointer is never followed, and never freed.
        let model = unsafe { ManuallyDrop::new(model_from_raw(raw)) };
        assert_eq!(model_ptr(&model), raw.as_ptr());
        // What the crate itself takes for the pointer.
        assert_eq!(format!("{:?}", *model), format!("LlamaModel {{ model: {raw:?} }}"));
    }

    #[test]
    fn an_adapter_is_its_pointer() {
        let raw = NonNull::<sys::llama_adapter_lora>::dangling();
        // SAFETY: the layout is what is tested; the pointer is never followed, and adapters have no destructor.
        let adapter = unsafe { std::mem::transmute::<NonNull<sys::llama_adapter_lora>, LlamaLoraAdapter>(raw) };
        assert_eq!(adapter_ptr(&adapter), raw.as_ptr());
        assert_eq!(
            format!("{adapter:?}"),
            format!("LlamaLoraAdapter {{ lora_adapter: {raw:?} }}")
        );
    }
}
