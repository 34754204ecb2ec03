//! The GGUF file as a plan: its header and a recipe for each tensor. `write` makes a file of it, `stream` answers reads
//! as if there were one.

use super::{ConvertError, RowQuantizer, RowScratch, TensorRecipe};
use crate::gguf::{self, GgufHeader, GgufLayout, GgufValue, TensorSpec};

/// GGUF file that exists only as a plan. Its size and all offsets are known, but no weight has been read.
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
        // Files made here pass the same check as downloaded ones: a checkpoint can ask for what llama.cpp crashes on.
        gguf::precheck(&GgufHeader::read(plan.header(), plan.file_len())?)?;
        Ok(Self {
            plan,
            recipes,
            quantize: None,
        })
    }

    /// Sets the function that makes rows of block types other than Q8_0.
    #[must_use]
    pub fn with_quantizer(mut self, quantize: RowQuantizer) -> Self {
        self.quantize = Some(quantize);
        self
    }

    /// Returns the buffers that a thread needs to make rows of this file.
    #[must_use]
    pub fn scratch(&self) -> RowScratch {
        RowScratch::new(self.quantize)
    }

    /// Returns the file's first bytes, up to the beginning of tensor data.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        self.plan.header()
    }

    /// Returns the bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.plan.file_len()
    }

    /// Returns the recipes in the order of the file.
    #[must_use]
    pub fn recipes(&self) -> &[TensorRecipe] {
        &self.recipes
    }

    /// Returns the offset of a tensor's data from the start of the file.
    #[must_use]
    pub fn data_offset(&self, tensor: usize) -> u64 {
        self.plan.header().len() as u64 + self.plan.tensors()[tensor].offset
    }

    /// Returns the bytes of a tensor's data without padding.
    pub(super) fn tensor_bytes(&self, tensor: usize) -> u64 {
        let recipe = &self.recipes[tensor];
        recipe.row_count() * recipe.row_bytes()
    }

    /// Returns the last tensor whose data begins at or before an offset from the start of the file.
    pub(super) fn tensor_at(&self, offset: u64) -> Option<usize> {
        let within = offset.checked_sub(self.plan.header().len() as u64)?;
        let behind = self.plan.tensors().partition_point(|tensor| tensor.offset <= within);
        behind.checked_sub(1)
    }
}
