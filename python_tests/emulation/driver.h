// SPDX-License-Identifier: Apache-2.0
// A driver is a small program round one operator's launchers. It names neither CUDA nor the emulation, so
// nvcc compiles the same file, and with it every kernel that the driver instantiates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace driver {

/// Memory of exactly the size asked for, so that AddressSanitizer sees the byte before and the byte behind.
template <typename T>
class Array {
 public:
  T* data() const { return reinterpret_cast<T*>(bytes_.get() + shift_); }
  size_t size() const { return (total_ - shift_) / sizeof(T); }
  T operator[](size_t i) const { return data()[i]; }

 private:
  friend class Arguments;
  std::shared_ptr<char[]> bytes_;
  size_t total_ = 0, shift_ = 0;
};

/// What the test passes, as NAME=VALUE. An array's value is a file with its bytes.
class Arguments {
 public:
  Arguments(int count, char** words);
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  const std::string& text(const std::string& name) const;
  int64_t integer(const std::string& name) const { return std::stoll(text(name)); }
  double number(const std::string& name) const { return std::stod(text(name)); }

  /// With shift=1 an array begins one element behind a 16-byte boundary, as a view of a tensor may.
  template <typename T>
  Array<T> array(const std::string& name) const {
    return filled<T>(read(text(name)));
  }
  /// `size` elements that hold no number: every byte is 0xff.
  template <typename T>
  Array<T> empty(size_t size) const {
    return filled<T>(std::string(size * sizeof(T), '\xff'));
  }
  /// Hands the array to the test.
  template <typename T>
  void give(const Array<T>& array) const {
    write(text("result"), {reinterpret_cast<const char*>(array.data()), array.size() * sizeof(T)});
  }

 private:
  template <typename T>
  Array<T> filled(const std::string& bytes) const {
    Array<T> out;
    out.shift_ = has("shift") ? static_cast<size_t>(integer("shift")) * sizeof(T) : 0;
    out.total_ = out.shift_ + bytes.size();
    out.bytes_.reset(new char[out.total_]);
    bytes.copy(out.bytes_.get() + out.shift_, bytes.size());
    return out;
  }
  static std::string read(const std::string& path);
  static void write(const std::string& path, const std::string& bytes);
  std::map<std::string, std::string> values_;
};

/// What a driver defines: makes its arrays, launches, gives the result.
void run(const Arguments& arguments);

}  // namespace driver
