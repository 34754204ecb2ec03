//! A GGUF file that exists only as a plan: its header, and how each of its tensors is made.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::{ConvertError, RowQuantizer, Scratch, TensorRecipe, write};
use crate::{
    gguf::{self, GgufHeader, GgufLayout, GgufValue, TensorSpec},
    stdx::new_file::NewFile,
};

/// A GGUF file that exists only as a plan. Its size and every offset are known; no weight has been read.
#[derive(Debug)]
pub struct VirtualGguf {
    plan: GgufLayout,
    recipes: Vec<TensorRecipe>,
    quantize: Option<RowQuantizer>,
}

impl VirtualGguf {
    pub(super) fn new(metadata: Vec<(String, GgufValue)>, recipes: Vec<TensorRecipe>) -> Result<Self, ConvertError> {
        recipes.iter().try_for_each(TensorRecipe::check)?;
        let specs: Vec<TensorSpec> = recipes.iter().map(|recipe| recipe.spec().clone()).collect();
        let plan = GgufLayout::new(metadata, specs)?;
        // What our own writer makes goes through the same door as a stranger's file.
        gguf::precheck(&GgufHeader::read(plan.header(), plan.file_len())?)?;
        Ok(Self {
            plan,
            recipes,
            quantize: None,
        })
    }

    /// Says who makes rows of the types that only the engine knows.
    #[must_use]
    pub fn with_quantizer(mut self, quantize: RowQuantizer) -> Self {
        self.quantize = Some(quantize);
        self
    }

    /// What each thread needs that makes rows of this file.
    #[must_use]
    pub fn scratch(&self) -> Scratch {
        Scratch::new(self.quantize)
    }

    /// The file's first bytes, up to where tensor data begins.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        self.plan.header()
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.plan.file_len()
    }

    /// How each tensor is made, in the order of the file.
    #[must_use]
    pub fn recipes(&self) -> &[TensorRecipe] {
        &self.recipes
    }

    /// Where a tensor's data begins, from the start of the file.
    #[must_use]
    pub fn data_offset(&self, tensor: usize) -> u64 {
        self.plan.header().len() as u64 + self.plan.tensors()[tensor].offset
    }

    /// Bytes of a tensor's data, without what aligns the next one.
    pub(super) fn tensor_bytes(&self, tensor: usize) -> u64 {
        let recipe = &self.recipes[tensor];
        recipe.row_count() * recipe.row_bytes()
    }

    /// The tensor whose data begins last at or before a position, from the start of the file.
    pub(super) fn tensor_at(&self, offset: u64) -> Option<usize> {
        let within = offset.checked_sub(self.plan.header().len() as u64)?;
        let behind = self.plan.tensors().partition_point(|tensor| tensor.offset <= within);
        behind.checked_sub(1)
    }

    /// Begins the file with its header; where the weights would be is a hole. Enough for whoever wants the vocabulary, or what
    /// a header says.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn create_header(&self, path: &Path) -> Result<NewFile, ConvertError> {
        write::create_header(self, path)
    }

    /// The same, but only where there is room for all of the file.
    ///
    /// # Errors
    /// If the disk is too small, or the file system refuses.
    pub fn create(&self, path: &Path) -> Result<NewFile, ConvertError> {
        write::create(self, path)
    }

    /// Writes the weights into a file that [`VirtualGguf::create`] began, on all cores and in any order.
    ///
    /// # Errors
    /// As [`VirtualGguf::write`].
    pub fn fill(
        &self,
        new: &NewFile,
        progress: write::WriteProgress<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), ConvertError> {
        write::fill(self, new, progress, cancel)
    }

    /// Writes the file, on all cores and in any order, but so that `path` holds all of it or is untouched.
    ///
    /// # Errors
    /// If the disk is too small, the checkpoint cannot be read, a number does not fit, or the caller cancels.
    pub fn write(
        &self,
        path: &Path,
        progress: write::WriteProgress<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), ConvertError> {
        write::write(self, path, progress, cancel)
    }
}
