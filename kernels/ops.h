// The ops of domain `ai.hebbline`. Each family defines its list; `ort/registration.cpp` registers them all.
#pragma once

#include <vector>

#include "ort/op.h"

namespace hebbline {

// BitmaskLinear, CsrLinear, BlockLinear, and each with the endings Int8 and Int4.
std::vector<const ort::CustomOp*> linear_ops();

// GatedLinear and QkvLinear of the same forms and endings.
std::vector<const ort::CustomOp*> gated_ops();

// ResidualNorm.
std::vector<const ort::CustomOp*> norm_ops();

// VarlenAttention.
std::vector<const ort::CustomOp*> attention_ops();

// DenseHead, ShortlistHead.
std::vector<const ort::CustomOp*> head_ops();

}  // namespace hebbline
